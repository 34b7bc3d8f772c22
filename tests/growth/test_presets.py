"""Schedules by family: what the fractions say, and which model gets which."""

from __future__ import annotations

from typing import Any

import pytest

from autoprog_diffusion.growth import GrowthConfig, fixed_plan
from autoprog_diffusion.growth.presets import freezing_from, has_joint_attention, schedule_of, trains_adapters
from autoprog_diffusion.training.arguments import GrowthArguments, autoprog_zero, with_preset

from ..settings import BY_ID
from .looping import add_adapter


def test_the_first_freeze_and_the_last_stage_are_where_they_are_asked_for() -> None:
    plan = fixed_plan(GrowthConfig(**freezing_from(0.4)), 16, 800)
    assert [len(stage.blocks) for stage in plan.stages] == [16, 14, 12, 10, 8, 6, 4, 2]
    starts = [stage.start for stage in plan.stages]
    assert starts == [0, 320, 383, 446, 510, 573, 636, 700]


@pytest.mark.parametrize(
    ("name", "joint"), [("sd", False), ("dit", False), ("sd3", True), ("flux2", True), ("qwen_image", True)]
)
def test_joint_attention_freezes_later(name: str, joint: bool) -> None:
    model = BY_ID[name].build()
    assert has_joint_attention(model) is joint
    first = schedule_of(model)["boundaries"][0]
    assert first == (0.6 if joint else 0.4)
    config = GrowthConfig.for_model(model, frozen_dtype="bfloat16", num_stages=3, boundaries=(0.5, 0.75))
    assert (config.min_trainable, config.boundaries, config.frozen_dtype) == (1 / 8, (0.5, 0.75), "bfloat16")


def test_adapters_train_for_the_whole_run() -> None:
    model: Any = BY_ID["sd"].build()
    assert not trains_adapters(model)
    add_adapter(model)
    assert trains_adapters(model)
    assert GrowthConfig.for_model(model).num_stages == 1
    model.requires_grad_(False)
    assert not trains_adapters(model)
    flags = GrowthArguments(num_stages=3)
    assert with_preset(flags, ("num_stages",), model) == flags


def test_a_flag_of_the_schedule_takes_its_place() -> None:
    model = BY_ID["sd"].build()
    flags = GrowthArguments(num_stages=3)
    assert with_preset(flags, ("num_stages",), model) == flags
    preset = with_preset(GrowthArguments(frozen_dtype="bfloat16"), ("frozen_dtype", "seed"), model)
    assert (preset.num_stages, preset.frozen_dtype) == (8, "bfloat16")
    assert preset.boundaries == freezing_from(0.4)["boundaries"]
    for other in (autoprog_zero(), GrowthArguments(growth="off")):
        assert with_preset(other, (), model) == other
