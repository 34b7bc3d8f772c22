"""The few transforms of torchvision that Diffusers' training scripts use, on Pillow and torch.

The tests can then run the scripts where torchvision is not installed. Names and arguments are torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


InterpolationMode = Image.Resampling


def crop(image: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    return image.crop((left, top, left + width, top + height))


class Compose:
    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class Lambda:
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, image: Any) -> Any:
        return self.function(image)


class Resize:
    """The shorter side becomes `size` pixels."""

    def __init__(self, size: int, interpolation: Image.Resampling = InterpolationMode.BILINEAR) -> None:
        self.size, self.interpolation = size, interpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        scale = self.size / min(image.size)
        width, height = (max(self.size, int(side * scale)) for side in image.size)
        return image.resize((width, height), self.interpolation)


class CenterCrop:
    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        top, left = round((image.height - self.size) / 2), round((image.width - self.size) / 2)
        return crop(image, top, left, self.size, self.size)


class RandomCrop:
    def __init__(self, size: int) -> None:
        self.size = size

    @staticmethod
    def get_params(image: Image.Image, output_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Top, left, height and width of a random crop."""
        height, width = output_size
        top = int(torch.randint(0, image.height - height + 1, ()))
        left = int(torch.randint(0, image.width - width + 1, ()))
        return top, left, height, width

    def __call__(self, image: Image.Image) -> Image.Image:
        return crop(image, *self.get_params(image, (self.size, self.size)))


class RandomHorizontalFlip:
    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.mirror(image) if torch.rand(()) < self.p else image


class PILToTensor:
    """An image as (C, H, W) bytes."""

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image))
        return (pixels if pixels.dim() == 3 else pixels[..., None]).permute(2, 0, 1).contiguous()


class ToTensor(PILToTensor):
    """An image as (C, H, W) floats in [0, 1]."""

    def __call__(self, image: Image.Image) -> Tensor:
        return super().__call__(image).float() / 255


class ConvertImageDtype:
    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, image: Tensor) -> Tensor:
        return image.to(self.dtype) / 255


class Normalize:
    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, image: Tensor) -> Tensor:
        return (image - self.mean) / self.std
