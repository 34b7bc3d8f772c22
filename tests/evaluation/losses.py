"""A denoising loss for tiny models of Diffusers, and models that train under it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.evaluation.draws import Draw

from ..settings import BY_ID, Family


FAMILY = BY_ID["unet2d"]


def loss_of(family: Family) -> Any:
    """A loss of every sample: the squared error against the draw's noise, at the draw's timesteps."""

    def loss(model: nn.Module, batch: dict[str, Any], draw: Draw) -> Tensor:
        inputs = dict(batch)
        for name in ("timestep", "timesteps"):
            if name in inputs:
                inputs[name] = draw.timesteps(1000).to(inputs[name].dtype)
        output = family.output(model, inputs)
        return (output - draw.noise(output)).square().flatten(1).mean(1)

    return loss


loss = loss_of(FAMILY)


def mean_loss(model: nn.Module, batch: dict[str, Any], draw: Draw) -> Tensor:
    return loss(model, batch, draw).mean()


def batches(family: Family = FAMILY, count: int = 3) -> list[dict[str, Any]]:
    """Batches of two samples."""
    return [family.inputs(seed, 2) for seed in range(count)]


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Batches as one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
