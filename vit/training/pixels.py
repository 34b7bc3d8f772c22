"""From image files to arrays of pixels of one size."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .arguments import AugmentArguments


# What Pillow raises where a file is damaged or is no image.
UNREADABLE = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)


def read_pixels(image: Image.Image, size: int) -> Tensor:
    """The centre square of an image at `size` pixels, (3, size, size) uint8; transparent parts on white."""
    if image.size == (size, size):
        return _to_tensor(_rgb(image))
    image.draft("RGB", (size, size))
    image = _rgb(image)
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    window = (left, top, left + side, top + side)
    return _to_tensor(image.resize((size, size), Image.Resampling.BICUBIC, window))


def random_window(
    height: int, width: int, args: AugmentArguments, generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of an image, as torchvision's RandomResizedCrop draws it."""
    for _ in range(10):
        first, second, top, left = torch.rand(4, generator=generator).tolist()
        area = height * width * (args.scale[0] + first * (args.scale[1] - args.scale[0]))
        low, high = (math.log(value) for value in args.ratio)
        ratio = math.exp(low + second * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def cut_window(image: Image.Image, size: int, args: AugmentArguments, generator: torch.Generator) -> Tensor:
    """A random part of an image at `size` pixels, (3, size, size) uint8."""
    image.draft("RGB", (2 * size, 2 * size))  # JPEG decodes at a fraction of its size, for less
    image = _rgb(image)
    top, left, height, width = random_window(image.height, image.width, args, generator)
    window = (left, top, left + width, top + height)
    return _to_tensor(image.resize((size, size), Image.Resampling.BICUBIC, window))


def shrink(images: Tensor, size: int) -> Tensor:
    """(N, 3, S, S) uint8 images -> (N, 3, size, size) uint8, by area averaging."""
    return F.interpolate(images.float(), size=(size, size), mode="area").round().to(torch.uint8)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
