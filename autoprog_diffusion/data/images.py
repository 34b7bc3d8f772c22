"""Pixels: cut a part from an image, and turn that into a tensor; `decode` reads the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from .colours import to_rgb


Bounds = tuple[float, float]
Number = TypeVar("Number", float, Tensor)
# Of an image that is so many times as long as the part, only the part is resized: the whole would fill the memory.
LONG = 64


@dataclass(frozen=True)
class ImageSettings:
    """Cropping, mirroring and resizing of the images of a diffusion model.

    Attributes:
        interpolation: Filter that resizes: nearest, bilinear, bicubic, lanczos or box.
        center_crop: Crop the centre of non-square images instead of a random place.
        random_flip: Mirror half of the images.
    """

    interpolation: str = "lanczos"
    center_crop: bool = False
    random_flip: bool = False


@dataclass(frozen=True)
class Cut:
    """A part of an image.

    Attributes:
        pixels: (3, height, width) float32 in [-1, 1].
        corner: Top and left of the part in the resized and perhaps mirrored image, in pixels.
    """

    pixels: Tensor
    corner: tuple[int, int]


def cut_window(
    image: Image.Image,
    height: int,
    width: int,
    settings: ImageSettings,
    generator: torch.Generator | None = None,
) -> Cut:
    """Cut a part of a fixed size from an image of any mode, resized so that it is covered, and no more.

    Args:
        image: The image; its transparent parts become white.
        height: Of the part in pixels.
        width: Of the part in pixels.
        settings: Filter, crop and flip.
        generator: Draws crop and flip; None crops the centre and does not flip.
    """
    image = to_rgb(image)
    scale = max(height / image.height, width / image.width)
    # Rounding must not make a side too short.
    whole_width = max(width, round(image.width * scale))
    whole_height = max(height, round(image.height * scale))
    place = None if settings.center_crop else generator
    # Drawn in this order since the first release: a resumed run must see the same crops.
    left = _offset(whole_width - width, place)
    top = _offset(whole_height - height, place)
    mirrored = False
    if generator is not None and settings.random_flip:
        mirrored = bool(torch.rand((), generator=generator) < 0.5)
    resampling = Image.Resampling[settings.interpolation.upper()]
    if whole_width > LONG * width or whole_height > LONG * height:
        # Rounding must not reach beyond the image.
        right = min((left + width) / scale, image.width)
        bottom = min((top + height) / scale, image.height)
        part = (
            left / scale,
            top / scale,
            right,
            bottom,
        )
        window = image.resize((width, height), resampling, part)
    else:
        if image.size != (whole_width, whole_height):
            image = image.resize((whole_width, whole_height), resampling)
        window = image.crop((left, top, left + width, top + height))
    pixels = _tensor(window).float()
    if mirrored:
        pixels = pixels.flip(2)
        left = whole_width - width - left
    return Cut(pixels / 127.5 - 1.0, (top, left))


def centre_corners(sizes: Tensor, height: int, width: int) -> Tensor:
    """(N, 2) top and left that `cut_window` takes without a generator, in pixels of the resized images.

    Args:
        sizes: (N, 2) heights and widths of the images in pixels.
        height: Of the part in pixels.
        width: Of the part in pixels.
    """
    wanted = torch.tensor([height, width], dtype=torch.float64)
    lengths = sizes.double()
    scales = (wanted / lengths).amax(dim=1, keepdim=True)
    whole = torch.maximum((lengths * scales).round(), wanted)
    return (whole - wanted) // 2


def cut_square(
    image: Image.Image, size: int, settings: ImageSettings, generator: torch.Generator | None = None
) -> tuple[Tensor, tuple[int, int]]:
    """Cut a square from an image of any mode, resized so that the square takes its shorter side.

    Args:
        image: The image; its transparent parts become white.
        size: Side of the square in pixels.
        settings: Filter, crop and flip.
        generator: Draws crop and flip; None crops the centre and does not flip.

    Returns:
        (3, size, size) float32 in [-1, 1], and top and left of the square in the resized and perhaps mirrored image.
    """
    cut = cut_window(image, size, size, settings, generator)
    return cut.pixels, cut.corner


def to_pixels(
    image: Image.Image, size: int, settings: ImageSettings, generator: torch.Generator | None = None
) -> Tensor:
    """The square alone, (3, size, size) float32 in [-1, 1]; arguments as `cut_square` takes them."""
    pixels, _ = cut_square(image, size, settings, generator)
    return pixels


def read_square(image: Image.Image, size: int) -> Tensor:
    """The centre square of an image at `size` pixels, (3, size, size) uint8; transparent parts are white."""
    image.draft("RGB", (size, size))
    return _tensor(ImageOps.fit(to_rgb(image), (size, size)))


def random_square(
    image: Image.Image,
    size: int,
    *,
    scale: Bounds,
    ratio: Bounds,
    generator: torch.Generator,
) -> Tensor:
    """A random part of an image at `size` pixels, (3, size, size) uint8; arguments as `random_window` takes them."""
    image.draft("RGB", (2 * size, 2 * size))
    image = to_rgb(image)  # before its sides are looked at: EXIF may exchange them
    top, left, height, width = random_window(
        image.height,
        image.width,
        scale=scale,
        ratio=ratio,
        generator=generator,
    )
    box = (left, top, left + width, top + height)
    return _tensor(image.resize((size, size), Image.Resampling.BICUBIC, box))


def random_window(
    height: int,
    width: int,
    *,
    scale: Bounds,
    ratio: Bounds,
    generator: torch.Generator,
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of an image, as torchvision's RandomResizedCrop draws it.

    Args:
        height: Of the image in pixels.
        width: Of the image in pixels.
        scale: Least and largest area of the part, as fractions of the image's.
        ratio: Least and largest width / height of the part.
        generator: Draws the part.
    """
    # The logarithm is drawn, so that wide and high parts are equally likely.
    low, high = map(math.log, ratio)
    for _ in range(10):
        size, shape, y, x = torch.rand(4, generator=generator).tolist()
        area = height * width * between(*scale, size)
        aspect = math.exp(between(low, high, shape))
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        # A part that is longer than the image is drawn again.
        if 0 < w <= width and 0 < h <= height:
            top = int(y * (height - h + 1))
            left = int(x * (width - w + 1))
            return top, left, h, w
    # Very long images have no such part: take their centre.
    side = min(height, width)
    top = (height - side) // 2
    left = (width - side) // 2
    return top, left, side, side


def shrink(images: Tensor, size: int) -> Tensor:
    """(N, 3, S, S) uint8 images -> (N, 3, size, size) uint8, by area averaging."""
    averages = F.interpolate(images.float(), size=(size, size), mode="area")
    return averages.round().to(torch.uint8)


def fit_images(images: Tensor, height: int, width: int) -> Tensor:
    """(N, 3, H, W) float images -> (N, 3, height, width), by area averaging of `fitted_window`."""
    full = (images.shape[2], images.shape[3])
    if full == (height, width):
        return images
    top, left, tall, wide = fitted_window(full[0], full[1], height, width)
    part = images[:, :, top : top + tall, left : left + wide]
    return F.interpolate(part, size=(height, width), mode="area")


def fitted_window(full_height: int, full_width: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the largest centred part that has the shape of a smaller size, in whole pixels.

    Args:
        full_height: Of the image in pixels.
        full_width: Of the image in pixels.
        height: Of the smaller size in pixels.
        width: Of the smaller size in pixels.
    """
    scale = max(height / full_height, width / full_width)
    tall = min(full_height, round(height / scale))
    wide = min(full_width, round(width / scale))
    return (full_height - tall) // 2, (full_width - wide) // 2, tall, wide


def between(low: float, high: float, share: Number) -> Number:
    """The place between two bounds, a share from 0 to 1 of the way."""
    return low + share * (high - low)


def seeded(*numbers: int) -> torch.Generator:
    """A generator whose draws depend on the numbers alone: the same in any worker, and after a resume."""
    return torch.Generator().manual_seed(hash(numbers) % 2**63)


def _offset(room: int, generator: torch.Generator | None) -> int:
    """Where a square begins: a random place from 0 to `room`, or the middle where nothing draws it."""
    if generator is None:
        return room // 2
    return int(torch.randint(room + 1, (), generator=generator))


def _tensor(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
