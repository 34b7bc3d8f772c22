"""Memory that is computed from a profile is that of the tracker over a whole run, within ten percent."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autoprog_diffusion.growth import GrowthConfig
from autoprog_diffusion.growth.fixed import fixed_plan
from autoprog_diffusion.planner.device import without_memory
from autoprog_diffusion.planner.inputs import make_inputs
from autoprog_diffusion.planner.memory import stage_memory
from autoprog_diffusion.planner.models import ModelSource
from autoprog_diffusion.planner.profile import Profile
from autoprog_diffusion.planner.settings import Plan
from autoprog_diffusion.planner.shapes import Shape
from autoprog_diffusion.planner.step import Run, StagePeak, stages
from autoprog_diffusion.planner.tracker import MemoryTracker

from .conftest import SIDE


FULL = {"num_stages": 1, "stage_embedding": False}
AGAIN = {"checkpointing": "all"}
WINDOW = {"direction": "window", "num_stages": 2, "frozen_dtype": "float8", **AGAIN}
PLANS = (
    Plan("full", FULL),
    Plan("full, checkpointing", {**FULL, **AGAIN}),
    Plan("freeze", {"num_stages": 3}),
    Plan("bfloat16, 8-bit, in backward", {**FULL, **AGAIN}, "adamw8bit", "bfloat16", step_in_backward=True),
    Plan("window", WINDOW),
    Plan("window, Adafactor", {**WINDOW, "frozen_dtype": "bfloat16"}, "adafactor"),
    Plan("LoRA", FULL, lora=16),
    Plan("LoRA, float8", {**FULL, **AGAIN, "frozen_dtype": "float8"}, lora=16),
)


def tracked(source: ModelSource, plan: Plan, batch: int) -> list[StagePeak]:
    """The slow, literal way: the library trains, and every storage is followed."""
    with torch.device("meta"):
        model = source.build()

    def inputs(_: Any) -> dict[str, Any]:
        return make_inputs(model, Shape(batch, SIDE))

    with without_memory() as device, MemoryTracker() as tracker:
        run = Run(plan, source.build, inputs, device)
        return list(stages(run, tracker))


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_the_peak_is_that_of_the_tracker(plan: Plan, small: ModelSource, profile: Profile) -> None:
    measured = tracked(small, plan, batch=2)
    config = GrowthConfig(**plan.growth)
    planned = fixed_plan(config, len(profile.names), config.num_stages, profile.block_sizes)
    for stage, true in zip(planned.stages, measured, strict=True):
        found = stage_memory(profile, plan, stage.blocks, batch=2)
        assert found["peak"] == pytest.approx(true.peak, rel=0.1)
        assert found["peak"] == sum(found["split"].values())
        assert found["host"] == pytest.approx(true.host, rel=0.1, abs=1e6)
