"""RandAugment (arXiv 1909.13719) with timm's notation and magnitudes, on batches and per sample.

kornia's `RandAugment` draws its operations once per batch, and its magnitudes are other ones; here every image draws
its own, as in timm, and kornia's functions do the work on the images that drew the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from kornia import enhance
from kornia.geometry.transform import warp_affine
from torch import Tensor

from autoprog_diffusion.growth.errors import ConfigError


Operation = Callable[[Tensor, Tensor], Tensor]
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
    found = {
        "m": 10.0,
        "n": 2.0,
        "mstd": 0.0,
        "inc": 1.0,
    }
    for part in parts:
        match = re.fullmatch(r"(mstd|m|n|inc)(\d+(?:\.\d+)?)", part)
        if match is None:
            raise ConfigError(f"--aa {text}: {part!r} is not known; use rand-m9-n2-mstd0.5-inc1 with other numbers.")
        found[match[1]] = float(match[2])
    layers = found["n"]
    magnitude = found["m"]
    deviation = found["mstd"]
    if first != "rand" or found["inc"] != 1.0:
        raise ConfigError(f"--aa {text}: only RandAugment with increasing strength is known, rand-...-inc1.")
    if layers < 1 or layers % 1 or magnitude > 10:
        raise ConfigError(f"--aa {text}: n is a whole number above 0 and m at most 10.")
    return RandAugment(magnitude, deviation, int(layers))


def rand_augment(images: Tensor, settings: RandAugment) -> Tensor:
    """(N, 3, H, W) images in [0, 1] -> the same; each goes through `layers` operations, each with probability 1/2."""
    images = images.clone()
    count = len(images)
    for _ in range(settings.layers):
        chosen = torch.randint(len(_OPERATIONS), (count,))
        skipped = torch.rand(count) >= _PROBABILITY
        chosen[skipped] = -1
        strengths = _strengths(count, settings).to(images.device)
        for index, operation in enumerate(_OPERATIONS.values()):
            rows = (chosen == index).nonzero().flatten()
            if len(rows):
                changed = operation(images[rows], strengths[rows])
                images[rows] = changed.clamp(0, 1)
    return images


def _strengths(count: int, settings: RandAugment) -> Tensor:
    """(count,) strengths in [-1, 1]: a tenth of magnitudes around the settings', with random signs."""
    level = torch.full((count,), float(settings.magnitude))
    if settings.deviation:
        level += settings.deviation * torch.randn(count)
    sign = torch.randint(2, (count,)) * 2.0 - 1
    return sign * level.clamp(0, 10) / 10


def _affine(images: Tensor, entries: dict[tuple[int, int], Tensor]) -> Tensor:
    """Warps (n, 3, H, W) images about their centres by matrices that differ from the identity in some entries.

    Args:
        images: The images.
        entries: Row and column of a (2, 3) matrix -> (n,) values; the last column shifts, in pixels.
    """
    matrix = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
    for (row, column), values in entries.items():
        matrix[:, row, column] = values
    height, width = images.shape[2:]
    centre = images.new_tensor([[width - 1], [height - 1]]) / 2
    linear, shift = matrix.split([2, 1], dim=-1)
    shift = centre - linear @ centre + shift
    return warp_affine(
        images,
        torch.cat([linear, shift], dim=-1),
        (height, width),
        padding_mode="fill",
        fill_value=images.new_full((3,), _FILL),
    )


def _rotate(images: Tensor, strength: Tensor) -> Tensor:
    """Rotate by at most 30 degrees."""
    angle = strength * math.radians(30)
    cos = angle.cos()
    sin = angle.sin()
    matrix = {
        (0, 0): cos,
        (0, 1): -sin,
        (1, 0): sin,
        (1, 1): cos,
    }
    return _affine(images, matrix)


def _shear(images: Tensor, strength: Tensor, axis: int) -> Tensor:
    """Shear by at most 0.3 along an axis: 0 is x, 1 is y."""
    return _affine(images, {(axis, 1 - axis): 0.3 * strength})


def _translate(images: Tensor, strength: Tensor, axis: int) -> Tensor:
    """Shift by at most 45 % of the side along an axis: 0 is x, 1 is y."""
    side = images.shape[3 - axis]
    pixels = 0.45 * side * strength
    return _affine(images, {(axis, 2): pixels})


def _always(change: Callable[[Tensor], Tensor]) -> Operation:
    """A change that has no strength."""
    return lambda images, strength: change(images)


def _per_image(values: Tensor) -> Tensor:
    """(n,) values, one for each of n images, as (n, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    """Keep the 4 to 1 highest bits of every pixel."""
    lost = (4 * strength.abs()).floor()
    # At least one bit: timm allows none at magnitude 10, which is a black image.
    bits = (4 - lost).clamp(min=1)
    step = _per_image(2 ** (8 - bits))
    levels = (images * 255).round()
    return torch.floor(levels / step) * step / 255


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    """Invert pixels above a threshold."""
    threshold = _per_image(1 - strength.abs())
    return torch.where(images < threshold, images, 1 - images)


def _solarize_add(images: Tensor, strength: Tensor) -> Tensor:
    """Brighten the darker half of the pixels by at most 110 of 255."""
    added = _per_image(110 / 255 * strength.abs())
    dark = images < 128 / 255
    return torch.where(dark, images + added, images)


def _by_factor(enhanced: Operation) -> Operation:
    """An enhancement by a factor: 1 changes nothing, both less and more are stronger."""

    def change(images: Tensor, strength: Tensor) -> Tensor:
        factor = (1 + 0.9 * strength).clamp(min=0.1)
        return enhanced(images, factor)

    return change


# timm's increasing transforms; each takes (n, 3, H, W) images in [0, 1] and n signed strengths in [-1, 1].
_OPERATIONS: dict[str, Operation] = {
    "auto_contrast": _always(enhance.normalize_min_max),
    "equalize": _always(enhance.equalize),
    "invert": _always(lambda images: 1 - images),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _by_factor(enhance.adjust_saturation_with_gray_subtraction),
    "contrast": _by_factor(enhance.adjust_contrast_with_mean_subtraction),
    "brightness": _by_factor(enhance.adjust_brightness_accumulative),
    "sharpness": _by_factor(enhance.sharpness),
    "shear_x": partial(_shear, axis=0),
    "shear_y": partial(_shear, axis=1),
    "translate_x": partial(_translate, axis=0),
    "translate_y": partial(_translate, axis=1),
}
