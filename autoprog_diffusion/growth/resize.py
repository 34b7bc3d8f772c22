"""Resampling a batch of images to a stage's resolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .errors import ConfigError
from .values import Resolution


def stage_size(size: tuple[int, int], resolution: Resolution, multiple: int) -> tuple[int, int]:
    """Height and width in pixels of an image of `size` at a stage's resolution.

    Args:
        size: Height and width of the data, in pixels.
        resolution: Fraction (float) of both sides, or pixels (int) of the shorter one; the aspect ratio is kept.
        multiple: What both sides must be a multiple of.

    Raises:
        ConfigError: A side is not a multiple, or the stage would be larger than the data.

    Example:
        >>> stage_size((512, 768), 0.5, 8), stage_size((64, 64), 48, 8)
        ((256, 384), (48, 48))
    """
    scale = resolution if isinstance(resolution, float) else resolution / min(size)
    if scale > 1:
        raise ConfigError(f"resolution {resolution} is larger than the images, {size}: growth never enlarges data.")
    height, width = (round(side * scale) for side in size)
    if height % multiple or width % multiple:
        near = sorted({max(multiple, round(s * scale / multiple) * multiple) for s in size})
        raise ConfigError(
            f"resolution {resolution} makes {size} images {(height, width)}, but both sides must be a multiple of "
            f"{multiple} (VAE factor times patch size): choose one that gives {near}."
        )
    return height, width


def resize_images(images: Tensor, resolution: Resolution, multiple: int) -> Tensor:
    """(N, C, H, W) images -> (N, C, h, w) at a stage's resolution, by area averaging; the value range is kept.

    Raises:
        ConfigError: The batch is not four-dimensional, or as `stage_size`.
    """
    if images.dim() != 4:
        raise ConfigError(f"resize takes a batch of shape (N, C, H, W), not {tuple(images.shape)}.")
    if isinstance(resolution, float) and resolution == 1.0:
        return images
    height, width = images.shape[2:]
    size = (height, width)
    target = stage_size(size, resolution, multiple)
    return images if target == size else F.interpolate(images, size=target, mode="area")
