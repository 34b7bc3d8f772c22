"""Models of published size as one GPU trains them, from configurations alone: their weights are random."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn


BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "memory")]  # the modules that all benchmarks share, and the models

import published
from models import Published, without_zeros

from autoprog_diffusion.search.recorded_calls import map_tensors


TINY_SD15 = {
    "sample_size": 8,
    "block_out_channels": (4, 6),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 2,
    "attention_head_dim": 2,
    "layers_per_block": 1,
    "cross_attention_dim": 7,
}
TINY_BATCH = 2


@dataclass(frozen=True)
class Load:
    """A model and a batch.

    Attributes:
        published: Its shape.
        batch: Images a step.
        cut: Sizes that replace the published ones.
        resolutions: Of stages beside 1, where the model's position tables allow others.
    """

    published: Published
    batch: int
    cut: dict[str, Any] = field(default_factory=dict)
    resolutions: tuple[float, ...] = (0.5,)

    def build(self, device: torch.device, *, dry: bool) -> nn.Module:
        """The model in training mode on the device: float32, no weight at zero, tiny in a dry run."""
        config = {**self.published.config, **({} if dry else self.cut)}
        with device:
            model = replace(self.published, config=config).build(tiny=dry)
        # Position tables that are made by numpy lie on the CPU wherever the model is built.
        return without_zeros(model.to(device)).train()

    def inputs(self, model: Any, device: torch.device, *, dry: bool) -> dict[str, Any]:
        """Keyword arguments of a forward pass: other noise for every sample, since a search compares them."""
        batch = TINY_BATCH if dry else self.batch

        def place(value: torch.Tensor) -> torch.Tensor:
            if not value.dim() or len(value) != 1:
                return value.to(device)
            if value.dim() == 1 or not value.is_floating_point():
                return value.repeat(batch, *[1] * (value.dim() - 1)).to(device)
            return torch.randn(batch, *value.shape[1:], device=device)

        return map_tensors(self.published.inputs(model.config), place)


LOADS = {
    "sd15": Load(replace(published.SD15, tiny=TINY_SD15), 8),
    "sdxl": Load(published.SDXL, 1),
    "sd3": Load(published.SD3, 1),
    "flux_2b": Load(published.FLUX, 1, cut={"num_layers": 3, "num_single_layers": 6}),
    "dit": Load(published.DIT, 32),
}
