"""A small DiT with its scheduler in stage 0, for the tests of the scheduler."""

from __future__ import annotations

from typing import Any

from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler

from ..settings import BY_ID


DIT = BY_ID["dit"]
UNET = BY_ID["unet2d"]


def prepared(steps: int = 6, **settings: Any) -> tuple[nn.Module, GrowthScheduler]:
    model = DIT.build()
    growth = GrowthScheduler(
        model, GrowthConfig(**{"num_stages": 3, "order": "interleaved", "direction": "unfreeze", **settings})
    )
    growth.prepare(model, num_training_steps=steps)
    return model, growth
