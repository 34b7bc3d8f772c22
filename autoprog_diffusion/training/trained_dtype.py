"""Weights that train in bfloat16: which ones, and how they become float32 again."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from autoprog_diffusion.growth.storage.compute import LAYERS


def store_in_bfloat16(model: nn.Module) -> None:
    """Store the weights of matrix products and convolutions that train in bfloat16, 2 bytes a parameter.

    Autocast casts them in every forward pass anyway, so they compute the same.
    Biases, norms and embeddings stay in float32: they are small, and some layers want them so.

    Args:
        model: In float32; its parameters stay the same objects.
    """
    for module in model.modules():
        if isinstance(module, LAYERS) and module.weight.requires_grad:
            module.weight.data = module.weight.data.to(torch.bfloat16)


def store_in_float32(parameters: Iterable[nn.Parameter]) -> None:
    """Widen parameters that are stored in bfloat16, which is exact; they stay the same objects."""
    for parameter in parameters:
        if parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.float()
