"""RandAugment (arXiv 1909.13719) with timm's notation and magnitudes, on batches and per sample.

kornia's `RandAugment` draws its operations once per batch, and its magnitudes are other ones; here every image draws
its own, as in timm, and kornia's functions do the work on the images that drew the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from kornia import enhance
from kornia.geometry.transform import warp_affine
from torch import Tensor

from autoprog_diffusion.growth.errors import ConfigError


_FILL = 0.5  # grey outside the image, near the mean of natural images, as in timm
_PROBABILITY = 0.5  # of an operation that was drawn, as in timm


@dataclass(frozen=True)
class RandAugment:
    """A parsed `rand-m9-mstd0.5-inc1`.

    Attributes:
        magnitude: 0 to 10.
        deviation: Standard deviation of the magnitude of each image.
        layers: Operations per image.
    """

    magnitude: float
    deviation: float = 0.0
    layers: int = 2


def parse_randaugment(text: str) -> RandAugment:
    """The settings in timm's notation: `rand`, m (magnitude), n (operations), mstd (its deviation), inc1.

    Raises:
        ConfigError: A part is not one of these; the message names it.
    """
    first, *parts = text.split("-")
    found: dict[str, float] = {}
    for part in parts:
        match = re.fullmatch(r"(mstd|m|n|inc)(\d+(?:\.\d+)?)", part)
        if match is None:
            raise ConfigError(f"--aa {text}: {part!r} is not known; use rand-m9-n2-mstd0.5-inc1 with other numbers.")
        found[match[1]] = float(match[2])
    layers, magnitude = found.get("n", 2.0), found.get("m", 10.0)
    if first != "rand" or found.get("inc", 1.0) != 1.0:
        raise ConfigError(f"--aa {text}: only RandAugment with increasing strength is known, rand-...-inc1.")
    if layers < 1 or layers != int(layers) or magnitude > 10:
        raise ConfigError(f"--aa {text}: n is a whole number above 0 and m at most 10.")
    return RandAugment(magnitude, found.get("mstd", 0.0), int(layers))


def rand_augment(images: Tensor, settings: RandAugment) -> Tensor:
    """(N, 3, H, W) images in [0, 1] -> the same; each goes through `layers` operations, each with probability 1/2."""
    images = images.clone()
    for _ in range(settings.layers):
        chosen = torch.randint(len(_OPERATIONS), (len(images),))
        chosen[torch.rand(len(images)) >= _PROBABILITY] = -1
        level = torch.full((len(images),), float(settings.magnitude))
        if settings.deviation:
            level += settings.deviation * torch.randn(len(images))
        level = level.clamp(0, 10) / 10
        sign = torch.randint(2, (len(images),)) * 2.0 - 1
        for index, operation in enumerate(_OPERATIONS):
            rows = (chosen == index).nonzero().flatten()
            if len(rows):
                strength = (level[rows] * sign[rows]).to(images.device)
                rows = rows.to(images.device)
                images[rows] = operation(images[rows], strength).clamp(0, 1)
    return images


def _affine(images: Tensor, matrix: Tensor) -> Tensor:
    """Warps (n, 3, H, W) images about their centres by (n, 2, 2) matrices plus (n, 2, 1) shifts in pixels."""
    height, width = images.shape[2:]
    centre = images.new_tensor([[(width - 1) / 2], [(height - 1) / 2]])
    linear, shift = matrix[..., :2], matrix[..., 2:]
    whole = torch.cat([linear, centre - linear @ centre + shift], dim=-1)
    fill = images.new_full((3,), _FILL)
    return warp_affine(images, whole, (height, width), padding_mode="fill", fill_value=fill)


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([torch.stack([a, b, x], -1), torch.stack([c, d, y], -1)], -2)


def _rotate(images: Tensor, strength: Tensor) -> Tensor:
    angle, zero = strength * math.radians(30), torch.zeros_like(strength)
    return _affine(images, _matrix(angle.cos(), -angle.sin(), angle.sin(), angle.cos(), zero, zero))


def _shear_x(images: Tensor, strength: Tensor) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _affine(images, _matrix(one, 0.3 * strength, zero, one, zero, zero))


def _shear_y(images: Tensor, strength: Tensor) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _affine(images, _matrix(one, zero, 0.3 * strength, one, zero, zero))


def _translate_x(images: Tensor, strength: Tensor) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _affine(images, _matrix(one, zero, zero, one, 0.45 * images.shape[3] * strength, zero))


def _translate_y(images: Tensor, strength: Tensor) -> Tensor:
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    return _affine(images, _matrix(one, zero, zero, one, zero, 0.45 * images.shape[2] * strength))


def _auto_contrast(images: Tensor, strength: Tensor) -> Tensor:
    return enhance.normalize_min_max(images)


def _equalize(images: Tensor, strength: Tensor) -> Tensor:
    return enhance.equalize(images)


def _invert(images: Tensor, strength: Tensor) -> Tensor:
    return 1 - images


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    # At least one bit: timm allows none at magnitude 10, which is a black image.
    bits = (4 - (4 * strength.abs()).floor()).clamp(min=1).view(-1, 1, 1, 1)
    step = 2 ** (8 - bits)
    return torch.floor((images * 255).round() / step) * step / 255


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    threshold = (1 - strength.abs()).view(-1, 1, 1, 1)
    return torch.where(images < threshold, images, 1 - images)


def _solarize_add(images: Tensor, strength: Tensor) -> Tensor:
    added = (110 / 255 * strength.abs()).view(-1, 1, 1, 1)
    return torch.where(images < 128 / 255, images + added, images)


def _color(images: Tensor, strength: Tensor) -> Tensor:
    return enhance.adjust_saturation_with_gray_subtraction(images, _factor(strength))


def _contrast(images: Tensor, strength: Tensor) -> Tensor:
    return enhance.adjust_contrast_with_mean_subtraction(images, _factor(strength))


def _brightness(images: Tensor, strength: Tensor) -> Tensor:
    return enhance.adjust_brightness_accumulative(images, _factor(strength))


def _sharpness(images: Tensor, strength: Tensor) -> Tensor:
    return enhance.sharpness(images, _factor(strength))


def _factor(strength: Tensor) -> Tensor:
    """Factor of an enhancement: 1 changes nothing, both less and more are stronger."""
    return (1 + 0.9 * strength).clamp(min=0.1)


# timm's increasing transforms; each takes (n, 3, H, W) images in [0, 1] and n signed strengths in [-1, 1].
_OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    _auto_contrast, _equalize, _invert, _rotate, _posterize, _solarize, _solarize_add, _color, _contrast, _brightness,
    _sharpness, _shear_x, _shear_y, _translate_x, _translate_y,
)  # fmt: skip
