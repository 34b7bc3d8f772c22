"""Every kind of image file has the pixels that a viewer shows, or is refused or left out by name."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from autoprog_diffusion.data.colours import to_rgb
from autoprog_diffusion.data.damaged import usable_images
from autoprog_diffusion.data.decode import read_image, undecoded
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.images import ImageSettings, cut_square, random_square, read_square, to_pixels
from autoprog_diffusion.vit.training.data import Encoded, decode_all

from .damage import DAMAGED, DEEP, deep, encode, gradient, picture, turned, with_bad_exif


def data_of(folder: Path, *contents: bytes, labels: list[int] | None = None) -> datasets.Dataset:
    """A data set of the files, as the readers make it."""
    files = []
    for number, content in enumerate(contents):
        path = folder / f"{number}.img"
        path.write_bytes(content)
        files.append(str(path))
    columns: dict[str, Any] = {"image": files, "label": labels or [0] * len(files)}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def array(content: bytes) -> np.ndarray:
    return np.asarray(to_rgb(Image.open(io.BytesIO(content))), dtype=int)


def test_reader_scales_more_than_8_bits(tmp_path_factory: pytest.TempPathFactory) -> None:
    for kind in DEEP:
        tmp_path = tmp_path_factory.mktemp("case")
        data = data_of(tmp_path, deep(kind))
        wanted = np.rint(gradient() * 255).astype(int)[:, :, None].repeat(3, 2)
        for image in (read_image(data, 0), read_image(undecoded(data), 0)):
            assert image.mode == "RGB"
            assert np.abs(np.asarray(image, int) - wanted).max() <= 1
        square = to_pixels(read_image(data, 0), 8, ImageSettings())
        assert torch.equal(square, to_pixels(Image.fromarray(wanted.astype(np.uint8)), 8, ImageSettings()))
        assert (decode_all(undecoded(data), 8, "refuse").images[0].int() - (square + 1) * 127.5).abs().max() < 40


def test_reader_keeps_the_transparent_value_of_16_bits() -> None:
    image = Image.fromarray(np.array([[0, 300], [65535, 300]], np.uint16))
    assert array(encode(image, "PNG", transparency=300))[..., 0].tolist() == [[0, 255], [255, 255]]


# Every orientation in the format that is decoded small, and one that turns and mirrors in the others.
TURNED = [("JPEG", {"quality": 95}, orientation) for orientation in range(1, 9)]
TURNED += [("PNG", {}, 7), ("WEBP", {"lossless": True}, 7)]


@pytest.mark.parametrize(("kind", "options", "orientation"), TURNED)
def test_reader_applies_the_orientation_everywhere(
    tmp_path: Path, kind: str, options: dict[str, Any], orientation: int
) -> None:
    content = turned(kind, orientation, **options)
    stored = Image.open(io.BytesIO(content))
    upright = _literally_upright(stored.convert("RGB"), orientation)
    data = data_of(tmp_path, content)
    image = read_image(data, 0)
    assert np.array_equal(image, upright)
    assert np.array_equal(to_rgb(image), upright), "applied twice"
    pixels, corner = cut_square(stored, 32, ImageSettings())
    wanted, wanted_corner = cut_square(upright, 32, ImageSettings())
    assert torch.equal(pixels, wanted)
    assert corner == wanted_corner
    rows = undecoded(data)
    # The JPEG is decoded at a fraction of its size here, before anything is known of its orientation.
    small = decode_all(rows, 8, "refuse").images[0].float()
    assert (small - read_square(upright, 8).float()).abs().mean() < 12


def _literally_upright(image: Image.Image, orientation: int) -> Image.Image:
    """EXIF's words: where the first row and the first column of the file are to be seen."""
    pixels = np.asarray(image)
    row, column = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "lt", 6: "rt", 7: "rb", 8: "lb"}[orientation]
    if orientation > 4:
        pixels = pixels.transpose(1, 0, 2)
    flipped = {row, column}
    pixels = pixels[::-1] if "b" in flipped else pixels
    pixels = pixels[:, ::-1] if "r" in flipped else pixels
    return Image.fromarray(np.ascontiguousarray(pixels))


def test_reader_draws_windows_of_the_upright_image() -> None:
    stored = Image.open(io.BytesIO(turned("PNG", 6)))
    upright = to_rgb(Image.open(io.BytesIO(turned("PNG", 6))))
    assert upright.size == (32, 64)
    settings: dict[str, Any] = {"scale": (0.2, 0.4), "ratio": (0.5, 2.0)}
    drawn = [
        random_square(image, 8, **settings, generator=torch.Generator().manual_seed(3)) for image in (stored, upright)
    ]
    assert torch.equal(*drawn)


READER_IGNORES_DAMAGED = [b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b"Exif\0\0", b"Exif\0\0garbage", b"\0" * 9]


def test_reader_ignores_damaged_exif(tmp_path_factory: pytest.TempPathFactory) -> None:
    for exif in READER_IGNORES_DAMAGED:
        tmp_path = tmp_path_factory.mktemp("case")
        data = data_of(tmp_path, with_bad_exif(exif), encode(picture(), "JPEG", quality=95))
        assert np.array_equal(read_image(data, 0), read_image(data, 1))
        assert len(decode_all(undecoded(data), 8, "refuse")) == 2


def test_reader_names_row_and_file_of_what_cannot_be_decoded(tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in DAMAGED:
        tmp_path = tmp_path_factory.mktemp("case")
        good = encode(picture(), "PNG")
        data = data_of(tmp_path, good, DAMAGED[name](), good)
        for rows in (data, undecoded(data)):
            with pytest.raises(
                DataError, match=r"image 1 of the training set cannot be decoded \(.*1\.img\): .*--corrupt"
            ):
                read_image(rows, 1)
        rows = undecoded(data)
        with pytest.raises(DataError, match=r"1 of 3 images cannot be decoded: row 1 \(.*1\.img\): .*--corrupt skip"):
            decode_all(rows, 8, "refuse")
        with pytest.raises(DataError, match=r"image 1 of the training set cannot be decoded \(.*1\.img\)"):
            Encoded(rows, size=8, crop=None, seed=0)[[0, 1]]


def test_reader_skips_and_counts_what_cannot_be_decoded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = encode(picture(), "PNG")
    broken = [make() for make in DAMAGED.values()]
    data = data_of(tmp_path, good, *broken, good)
    assert usable_images(data, "refuse") == (data, {})
    with caplog.at_level(logging.WARNING):
        usable, damaged = usable_images(data, "skip")
    assert list(damaged) == list(range(1, len(broken) + 1))
    assert f"{len(broken)} of {len(data)} images cannot be decoded: row 1 (" in caplog.text
    assert all(damaged.values())
    assert len(usable) == 2
    assert np.array_equal(read_image(usable, 1), picture())
    assert len(decode_all(undecoded(data), 8, "skip")) == 2
    whole, none = usable_images(usable, "skip")
    assert whole._fingerprint == usable._fingerprint
    assert not none


def test_reader_refuses_where_nothing_is_left(tmp_path: Path) -> None:
    good = encode(picture(), "PNG")
    with pytest.raises(DataError, match="2 of 2 images cannot be decoded"):
        usable_images(data_of(tmp_path, b"", b"x"), "skip")
    with pytest.raises(DataError, match=r"Nothing is left of the classes with the labels \[1\]"):
        usable_images(data_of(tmp_path, good, b"x", labels=[0, 1]), "skip")


@pytest.mark.parametrize("value", [None, {"bytes": None, "path": "/nowhere/a.png"}])
def test_reader_names_the_row_of_a_missing_image(value: Any) -> None:
    data = datasets.Dataset.from_dict({"image": [value]}, features=datasets.Features({"image": datasets.Image()}))
    with pytest.raises(DataError, match="image 0 of the training set cannot be decoded"):
        read_image(data, 0)


def _palette(transparent: bool) -> bytes:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    image.putpalette([10, 20, 30, 200, 100, 50])
    return encode(image, "PNG", **({"transparency": 1} if transparent else {}))


def _alpha(mode: str) -> Image.Image:
    image = Image.new("RGBA", (2, 2), (40, 40, 40, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    return image.convert(mode)


def _grey(*values: int) -> Image.Image:
    return Image.fromarray(np.array([values], np.uint8))


RED = (255, 0, 0)
COLOURS: dict[str, tuple[Callable[[], bytes], list[Any]]] = {
    "palette": (lambda: _palette(False), [(10, 20, 30), (200, 100, 50)]),
    "palette with transparency": (lambda: _palette(True), [(10, 20, 30), (255, 255, 255)]),
    "LA": (lambda: encode(_alpha("LA"), "PNG"), [(40, 40, 40), (255, 255, 255)]),
    "RGBA": (lambda: encode(_alpha("RGBA"), "PNG"), [(40, 40, 40), (255, 255, 255)]),
    "PA": (lambda: encode(_alpha("RGBA").quantize(4), "PNG"), [(40, 40, 40), (255, 255, 255)]),
    "1 bit": (lambda: encode(_grey(0, 255).convert("1"), "PNG"), [(0,) * 3, (255,) * 3]),
    "grey with transparency": (lambda: encode(_grey(9, 77), "PNG", transparency=77), [(9,) * 3, (255,) * 3]),
    "GIF, first frame": (
        lambda: encode(
            Image.new("RGB", (2, 1), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (2, 1), "blue")]
        ),
        [RED, RED],
    ),
    "APNG, first frame": (
        lambda: encode(
            Image.new("RGB", (2, 1), RED), "PNG", save_all=True, append_images=[Image.new("RGB", (2, 1), "blue")]
        ),
        [RED, RED],
    ),
    "WebP, first frame": (
        lambda: encode(
            Image.new("RGB", (2, 1), RED),
            "WEBP",
            save_all=True,
            append_images=[Image.new("RGB", (2, 1), "blue")],
            lossless=True,
        ),
        [RED, RED],
    ),
    "CMYK TIFF": (lambda: encode(Image.new("CMYK", (2, 1), (0, 255, 255, 0)), "TIFF"), [RED, RED]),
    "CMYK JPEG": (lambda: encode(Image.new("CMYK", (16, 8), (0, 255, 255, 0)), "JPEG", quality=100), [RED, RED]),
    "YCbCr JPEG": (lambda: encode(Image.new("RGB", (16, 8), RED), "JPEG", quality=100), [RED, RED]),
}  # fmt: skip


def test_reader_shows_the_colours_of_every_mode() -> None:
    for name in COLOURS:
        make, colours = COLOURS[name]
        pixels = array(make())
        for column, colour in enumerate(colours):
            assert np.abs(pixels[0, column] - colour).max() <= 3, pixels[0, column]


def test_reader_takes_modes_in_memory() -> None:
    for mode in ("RGBa", "La", "HSV", "YCbCr", "LAB", "RGBX", "I;16B", "I;16L"):
        assert to_rgb(Image.new(mode, (5, 4))).mode == "RGB"


def test_reader_converts_lab() -> None:
    srgb = ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(srgb, ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(picture(), transform)
    assert lab is not None
    assert np.abs(array(encode(lab, "TIFF")) - np.asarray(picture(), int)).mean() < 4


def test_reader_applies_a_colour_profile_and_leaves_srgb_alone() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = np.asarray(picture(), int)
    assert np.array_equal(array(encode(picture(), "PNG", icc_profile=srgb)), plain)
    # The same profile with red and green exchanged: a red pixel of the file is to be seen green.
    exchanged = srgb.replace(b"rXYZ", b"tmp_").replace(b"gXYZ", b"rXYZ").replace(b"tmp_", b"gXYZ")
    content = encode(Image.new("RGB", (4, 4), RED), "PNG", icc_profile=exchanged)
    assert array(content)[0, 0, 1] > 200 > 60 > array(content)[0, 0, 0]
    for useless in (b"", b"no profile", srgb[:200]):
        assert np.array_equal(array(encode(picture(), "PNG", icc_profile=useless)), plain)


def test_reader_leaves_ordinary_images_as_they_are() -> None:
    rgb = picture()
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(rgb.size))
    white = Image.new("RGBA", rgb.size, "white")
    for image, wanted in (
        (rgb, rgb),
        (rgb.convert("L"), rgb.convert("L").convert("RGB")),
        (rgb.convert("P"), rgb.convert("P").convert("RGB")),
        (alpha, Image.alpha_composite(white, alpha).convert("RGB")),
    ):
        assert np.array_equal(array(encode(image, "PNG")), wanted)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (20_000, 1), (1, 20_000), (2, 30_000)])
def test_reader_cuts_squares_from_points_and_lines(size: tuple[int, int]) -> None:
    width, height = size
    values = np.linspace(0, 255, max(size)).astype(np.uint8).reshape(height, -1)[:, :width]
    image = Image.fromarray(np.broadcast_to(values, (height, width)).copy())
    pixels, (top, left) = cut_square(image, 64, ImageSettings())
    assert pixels.shape == (3, 64, 64)
    if max(size) > 1000:
        assert abs(float(pixels.mean())) < 0.05  # the middle of the line
        assert max(top, left) > 64 * 5000
    assert read_square(image, 64).shape == (3, 64, 64)
    generator = torch.Generator().manual_seed(0)
    assert random_square(image, 64, scale=(0.1, 1.0), ratio=(0.75, 1.33), generator=generator).shape == (3, 64, 64)


def test_reader_takes_large_images_and_names_those_that_are_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    images = [Image.new("RGB", (40, 30)), Image.new("RGB", (60, 60))]
    data = undecoded(data_of(tmp_path, *(encode(image, "PNG") for image in images)))
    # Pillow warns of more than 1,000, and a warning is an error in these tests.
    assert read_image(data, 0).size == (40, 30)
    with pytest.raises(DataError, match=r"1\.img\): it has more than 2,000 pixels: make it smaller"):
        read_image(data, 1)
