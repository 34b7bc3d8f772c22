"""Sizes of images from the heads of their files are those of the decoded images."""

from __future__ import annotations

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image, features

from autoprog_diffusion.data.colours import to_rgb
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.image_sizes import measure_images, upright_size


FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM", "TGA"]


def encoded(kind: str, orientation: int) -> bytes:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") else {}))
    return file.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_the_head_says_the_upright_size(kind: str) -> None:
    if kind in ("WEBP", "AVIF") and not features.check(kind.lower()):
        pytest.skip(f"this Pillow has no {kind}")
    for orientation in (1, 3, 6, 7):
        content = encoded(kind, orientation)
        decoded = to_rgb(Image.open(io.BytesIO(content)))
        assert upright_size(Image.open(io.BytesIO(content))) == (decoded.height, decoded.width), orientation


def test_sizes_are_measured_once(tmp_path: Path, accelerator: Accelerator) -> None:
    lengths = [(4, 9), (7, 3), (5, 5)]
    images = [Image.new("RGB", (width, height)) for height, width in lengths]
    data = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
    sizes = measure_images(data, tmp_path, accelerator)
    assert sizes[torch.arange(3)].tolist() == [list(map(float, pair)) for pair in lengths]
    before = sizes.path.stat().st_mtime_ns
    assert measure_images(data, tmp_path, accelerator).path.stat().st_mtime_ns == before


def test_a_damaged_image_is_named(tmp_path: Path, accelerator: Accelerator) -> None:
    file = tmp_path / "broken.png"
    file.write_bytes(b"no image")
    data = datasets.Dataset.from_dict({"image": [str(file)]}).cast_column("image", datasets.Image())
    with pytest.raises(DataError, match=r"image 0 of the training set cannot be decoded.*broken\.png"):
        measure_images(data, tmp_path, accelerator)
