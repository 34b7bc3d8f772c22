"""The shape of a batch, and the tensors that many classes of denoisers take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """The size of a batch.

    Attributes:
        batch: Images.
        side: Side of the latents, before any packing; None is what the model was made for.
        text: Tokens of text; None is as many as the model's pipeline takes.
        frames: Latent frames of a video.
    """

    batch: int = 1
    side: int | None = None
    text: int | None = None
    frames: int = 4


Inputs = dict[str, Any]
Builder = Callable[[Any, Shape], Inputs]
LATENT_SIDE = 128  # of 1024 pixels, where a configuration does not say
PACKED = 2  # latents of packed models that make a token, along a side


def default_side(cls: str, config: Any) -> int:
    """Side of the latents that a model was made for, before any packing."""
    side = config.get("sample_size") if hasattr(config, "get") else None
    if isinstance(side, (list, tuple)):
        side = side[0]
    return side or LATENT_SIDE


def side_of(config: Any, shape: Shape) -> int:
    """Side of the latents of a batch, before any packing."""
    return shape.side or default_side("", config)


def image_of(config: Any, shape: Shape) -> Tensor:
    """Latents of images, (N, C, H, W)."""
    side = side_of(config, shape)
    return torch.randn(
        shape.batch,
        config.in_channels,
        side,
        side,
    )


def timesteps_of(shape: Shape) -> Tensor:
    """Timesteps of a batch, (N,), whole numbers."""
    return torch.ones(shape.batch, dtype=torch.long)


def text_of(shape: Shape, tokens: int, width: int) -> Tensor:
    """Tokens of text, (N, L, width); as many as `tokens` unless the batch says another number."""
    return torch.randn(
        shape.batch,
        shape.text or tokens,
        width,
    )
