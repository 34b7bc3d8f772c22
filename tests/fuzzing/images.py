"""Damaged images: each is decoded, or named; and it is left out exactly where it is named."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import datasets
import torch
from data.damage import DAMAGED, DEEP, HAS_AVIF, deep, encode, picture, turned
from PIL import Image

from autoprog_diffusion.data.damaged import find_damaged
from autoprog_diffusion.data.decode import read_image, undecoded
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.images import ImageSettings, random_square, to_pixels
from autoprog_diffusion.vit.training.data import Encoded, decode_all

from .mutate import damaged, require


# Decoding a few flipped bits of a header must not take a minute.
MOST_PIXELS = 300_000
ENDINGS = (".png", ".jpg", ".tif", ".webp", ".gif", ".bmp", ".avif", ".img", "")


class Images:
    """One damaged image beside a whole one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        small = picture(24, 16)
        transparent = small.convert("RGBA")
        transparent.putalpha(small.convert("L"))
        frames: dict[str, Any] = {"save_all": True, "append_images": [picture(24, 16, 1)]}
        self._whole = [deep(kind) for kind in DEEP]
        self._whole += [turned(kind, 6) for kind in ("JPEG", "PNG", "WEBP", *["AVIF"] * HAS_AVIF)]
        self._whole += [encode(small, kind) for kind in ("JPEG", "PNG", "BMP", "PPM", "TGA", "ICO", "JPEG2000", "PCX")]
        self._whole += [encode(small, "JPEG", progressive=True), encode(small.convert("CMYK"), "JPEG")]
        self._whole += [encode(small, kind, **frames) for kind in ("GIF", "WEBP", "PNG", "TIFF")]
        self._whole += [encode(small, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "packbits")]
        self._whole += [encode(small.convert(mode), "PNG") for mode in ("1", "L", "P", "LA")]
        self._whole += [encode(small.convert(mode), "TIFF") for mode in ("1", "CMYK", "YCbCr")]
        self._whole += [encode(transparent, "PNG"), encode(transparent.quantize(8), "PNG")]
        self._whole += [make() for make in DAMAGED.values()]
        (folder / "good.png").write_bytes(encode(small, "PNG"))

    def case(self, chance: random.Random) -> str:
        """Decode a damaged file in every way there is."""
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = MOST_PIXELS
        try:
            return self._decode(chance)
        finally:
            Image.MAX_IMAGE_PIXELS = before

    def _decode(self, chance: random.Random) -> str:
        bad = self._folder / f"bad{chance.choice(ENDINGS)}"
        bad.write_bytes(damaged(chance, chance.choice(self._whole)))
        files = [str(self._folder / "good.png"), str(bad)]
        columns: dict[str, Any] = {"image": files, "label": [0, 0]}
        rows = undecoded(datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()))
        try:
            image = read_image(rows, 1)
        except DataError as error:
            require(f"image 1 of the training set cannot be decoded ({bad})" in str(error), f"not named: {error}")
            image = None
        left_out = find_damaged(rows)
        require((1 in left_out) == (image is None), f"read: {image}, but left out: {left_out}")
        require(0 not in left_out, f"a whole image is left out: {left_out}")
        used = decode_all(rows, 8, "skip")
        require(len(used) == 2 - len(left_out), f"{len(used)} images are used, but left out: {left_out}")
        if image is None:
            return "refused"
        require(image.mode == "RGB" and 0 not in image.size, f"an image of mode {image.mode} and size {image.size}")
        pixels = to_pixels(image, 16, ImageSettings(), torch.Generator().manual_seed(0))
        require(bool(pixels.abs().max() <= 1), "pixels beyond [-1, 1]")
        window: dict[str, Any] = {"scale": (0.1, 1.0), "ratio": (0.5, 2.0)}
        random_square(image, 16, **window, generator=torch.Generator().manual_seed(0))
        images, _ = Encoded(rows, size=8, crop=None, seed=0)[[0, 1]]
        require(torch.equal(images, used.images), "two ways of decoding differ")
        return "read"
