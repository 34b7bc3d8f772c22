"""Image files of every kind that Pillow can write, whole and damaged."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image


Array = np.ndarray
ORIENTATION = 0x0112


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(height: int = 8, width: int = 12) -> Array:
    """(H, W) float64 from 0 to 1, from left to right, every row alike."""
    return np.broadcast_to(np.linspace(0, 1, width), (height, width))


def deep(kind: str) -> bytes:
    """The gradient at more than 8 bits."""
    values = gradient()
    sixteen = np.rint(values * 65535).astype(np.uint16)
    if kind == "16-bit PNG":
        return encode(Image.fromarray(sixteen), "PNG")
    if kind == "16-bit TIFF":
        return encode(Image.fromarray(sixteen), "TIFF")
    if kind == "16-bit TIFF, compressed":
        return encode(Image.fromarray(sixteen), "TIFF", compression="tiff_lzw")
    if kind == "16-bit TIFF, big endian":
        return encode(Image.fromarray(sixteen.astype(">u2")), "TIFF")
    if kind == "16-bit TIFF, white is zero":
        return tiff(65535 - sixteen, photometric=0)
    if kind == "16-bit PGM":
        return b"P5 12 8 65535\n" + sixteen.astype(">u2").tobytes()
    if kind == "32-bit TIFF":
        return encode(Image.fromarray(np.rint(values * (2**31 - 1)).astype(np.int32)), "TIFF")
    if kind == "32-bit TIFF, unsigned":
        return tiff(np.rint(values * (2**32 - 1)).astype(np.uint32))
    if kind == "32-bit TIFF of 16 bits":
        return encode(Image.fromarray(sixteen.astype(np.int32)), "TIFF")
    if kind == "32-bit TIFF of 8 bits":
        return encode(Image.fromarray(np.rint(values * 255).astype(np.int32)), "TIFF")
    if kind == "float TIFF":
        return encode(Image.fromarray(values.astype(np.float32)), "TIFF")
    assert kind == "float PFM"
    return encode(Image.fromarray(values.astype(np.float32)), "PPM")


DEEP = (
    "16-bit PNG", "16-bit TIFF", "16-bit TIFF, compressed", "16-bit TIFF, big endian", "16-bit TIFF, white is zero",
    "16-bit PGM", "32-bit TIFF", "32-bit TIFF, unsigned", "32-bit TIFF of 16 bits", "32-bit TIFF of 8 bits",
    "float TIFF", "float PFM",
)  # fmt: skip


def tiff(values: Array, photometric: int = 1) -> bytes:
    """A little-endian TIFF of one strip, of unsigned integers that Pillow does not write."""
    content = values.tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, 8 * values.itemsize), (259, 1), (262, photometric), (273, 8)]
    tags += [(277, 1), (278, height), (279, len(content)), (339, 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = 8 + len(content)
    return b"II*\0" + struct.pack("<I", start) + content + struct.pack("<H", len(tags)) + entries + b"\0" * 4


def picture(width: int = 48, height: int = 32, seed: int = 0) -> Image.Image:
    """Coarse random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def turned(kind: str, orientation: int, **options: Any) -> bytes:
    """A picture, dark on the left, stored with EXIF's orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    array = np.zeros((32, 64, 3), np.uint8)
    array[:, 32:] = 255
    array[:8] = 128
    return encode(Image.fromarray(array), kind, exif=exif, **options)


def with_bad_exif(content: bytes = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01") -> bytes:
    return encode(picture(), "JPEG", quality=95, exif=content)


def half(kind: str, **options: Any) -> bytes:
    content = encode(picture(96, 64), kind, **options)
    return content[: len(content) // 2]


def with_garbage(kind: str, **options: Any) -> bytes:
    """The header and noise after it."""
    content = encode(picture(96, 64), kind, **options)
    start = len(content) // 4
    noise = np.random.default_rng(1).integers(0, 256, len(content) - start, dtype=np.uint8)
    return content[:start] + noise.tobytes()


def huge_png(side: int = 20_000) -> bytes:
    """A PNG that says it has more pixels than Pillow decodes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


# Files that cannot be decoded, by what Pillow raises or how they came to be.
DAMAGED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"<html>404</html>",
    "only a signature": lambda: b"\x89PNG\r\n\x1a\n",
    "half PNG": lambda: half("PNG"),
    "half JPEG": lambda: half("JPEG"),
    "half progressive JPEG": lambda: half("JPEG", progressive=True),
    "half BMP": lambda: half("BMP"),
    "half WebP": lambda: half("WEBP"),
    "half TIFF": lambda: half("TIFF"),
    "half compressed TIFF": lambda: half("TIFF", compression="tiff_lzw"),
    "half PPM": lambda: half("PPM"),
    "half AVIF": lambda: half("AVIF"),
    "garbage in a TIFF": lambda: with_garbage("TIFF", compression="tiff_lzw"),
    "garbage in an AVIF": lambda: with_garbage("AVIF"),
    "half JPEG 2000": lambda: half("JPEG2000"),
    "too many pixels": huge_png,
    "float above 1": lambda: encode(Image.fromarray(np.full((4, 4), 7.5, np.float32)), "TIFF"),
    "float below 0": lambda: encode(Image.fromarray(np.full((4, 4), -0.5, np.float32)), "TIFF"),
    "not a number": lambda: encode(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"),
    "negative integers": lambda: encode(Image.fromarray(np.full((4, 4), -3, np.int32)), "TIFF"),
    "faint 32-bit": lambda: encode(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"),
}
HAS_AVIF = ".avif" in Image.registered_extensions()
if not HAS_AVIF:
    DAMAGED = {name: make for name, make in DAMAGED.items() if "AVIF" not in name}
