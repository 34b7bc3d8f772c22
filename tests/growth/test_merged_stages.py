"""Stages that a model or a run has no room for are merged, and said in one line."""

from __future__ import annotations

import logging
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth import fixed_plan
from autoprog_diffusion.growth.search_session import searched_starts

from ..settings import BY_ID
from .preparing import DIT


pytestmark = pytest.mark.smoke

SD3 = BY_ID["sd3"]

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "unfreeze": {"direction": "unfreeze"},
    "interleaved": {"order": "interleaved"},
    "many": {"num_stages": 9, "direction": "unfreeze", "order": "prefix"},
    "everything": {"min_trainable": 1.0},
    "resolutions": {"resolutions": (0.25, 0.5, 0.75, 1.0)},
    "sizes": {"direction": "unfreeze", "resolutions": (16, 32, 32, 64)},
    "late": {"boundaries": (10, 20, 30)},
    "late unfreeze": {"boundaries": (2, 20, 30), "direction": "unfreeze"},
    "fractions": {"boundaries": (0.01, 0.02, 0.9)},
    "windows": {"direction": "window"},
    "sweeps": {"direction": "window", "num_stages": 6, "sweeps": 3, "order": "prefix"},
    "overlap": {"direction": "window", "num_stages": 5, "window_share": 0.5, "order": "interleaved"},
    "windows of sizes": {"direction": "window", "resolutions": (16, 32, 32, 64), "boundaries": (1, 2, 30)},
    "search": {"search": "zero_shot"},
    "long search": {"search": "zero_shot", "search_batches": 3, "num_stages": 2},
}


class Chain(nn.Sequential):
    """Linear layers, one a block."""

    def __init__(self, blocks: int) -> None:
        super().__init__(*[nn.Linear(2, 2) for _ in range(blocks)])


def train(model: nn.Module, config: GrowthConfig, steps: int) -> GrowthScheduler:
    growth = GrowthScheduler(model, config, blocks=["*"])
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-2)
    growth.prepare(model, num_training_steps=steps, optimizer=optimizer)
    for _ in range(steps):
        model(torch.randn(3, 2)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    growth.fold(model)
    return growth


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was warned of; a run that was logged before in this process leaves the stages' lines on."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_every_number_of_steps_and_blocks_trains() -> None:
    for name in SETTINGS:
        for blocks in (1, 3):
            config = GrowthConfig(stage_embedding=False, **SETTINGS[name])
            for steps in (1, 2, 3, 6):
                plan = train(Chain(blocks), config, steps).plan
                assert plan.num_training_steps == steps
                fullest = set(plan.stages[0 if config.freezes else -1].blocks)
                if config.direction == "window":
                    fullest = {block for stage in plan.stages for block in stage.blocks}
                assert fullest == set(range(blocks))
                assert plan.stages[-1].resolution == (config.resolutions or (1.0,))[-1] or config.boundaries
                trained = [(stage.blocks, stage.resolution) for stage in plan.stages]
                assert all(early != late for early, late in pairwise(trained)) or config.search != "none"


A_MERGED_STAGE = [
    ({}, 28, 400, [0, 100, 200, 300], [28, 21, 14, 7]),
    ({}, 28, 3, [0, 1, 2], [28, 14, 7]),
    ({}, 28, 2, [0, 1], [28, 14]),
    ({}, 28, 1, [0], [28]),
    ({"direction": "unfreeze"}, 28, 2, [0, 1], [14, 28]),
    ({"direction": "unfreeze"}, 28, 1, [0], [28]),
    ({}, 3, 100, [0, 50, 75], [3, 2, 1]),
    ({}, 1, 100, [0], [1]),
    ({"boundaries": (10, 20, 30)}, 28, 15, [0, 10], [28, 21]),
    ({"boundaries": (10, 20, 30), "direction": "unfreeze"}, 28, 15, [0, 10], [7, 28]),
    ({"num_stages": 2, "min_trainable": 1.0}, 8, 100, [0], [8]),
    ({"direction": "window"}, 28, 400, [0, 100, 200, 300], [7, 7, 7, 7]),
    ({"direction": "window"}, 28, 2, [0, 1], [14, 14]),
    ({"direction": "window"}, 28, 1, [0], [28]),
    ({"direction": "window", "num_stages": 8}, 3, 80, [0, 30, 60], [1, 1, 1]),
    ({"direction": "window", "num_stages": 2, "sweeps": 2}, 8, 100, [0], [8]),
    ({"direction": "window", "num_stages": 8, "sweeps": 2}, 28, 4, [0, 1, 2, 3], [14, 14, 14, 14]),
    ({"direction": "window", "boundaries": (10, 20, 30)}, 28, 15, [0, 10], [7, 21]),
]


def test_a_merged_stage_trains_what_any_of_its_stages_trains() -> None:
    for settings, blocks, steps, starts, trains in A_MERGED_STAGE:
        plan = fixed_plan(GrowthConfig(**settings), blocks, steps)
        assert [stage.start for stage in plan.stages] == starts
        assert [len(stage.blocks) for stage in plan.stages] == trains


def test_merged_stages_take_the_largest_resolution() -> None:
    plan = fixed_plan(GrowthConfig(resolutions=(0.25, 0.5, 0.75, 1.0)), 28, 2)
    assert [stage.resolution for stage in plan.stages] == [0.5, 1.0]
    plan = fixed_plan(GrowthConfig(resolutions=(0.25, 0.5, 0.5, 1.0)), 1, 100)
    assert [(stage.start, stage.resolution) for stage in plan.stages] == [(0, 0.25), (25, 0.5), (75, 1.0)]


A_SHORT_RUN = [
    ({}, 40, [0, 2, 10, 20, 30]),
    ({}, 12, [0, 2, 6, 9]),  # from step 2 to 3 there is nothing to look at
    ({}, 6, [0, 2, 4]),
    ({}, 4, [0, 2, 3]),
    ({}, 3, None),
    ({"search_batches": 9}, 16, [0, 9, 12]),
    ({"boundaries": (5, 100, 200)}, 50, [0, 2, 5]),
]


def test_a_short_run_is_searched_as_often_as_it_has_room() -> None:
    for settings, steps, starts in A_SHORT_RUN:
        assert searched_starts(GrowthConfig(search="zero_shot", **settings), steps) == starts


@pytest.mark.parametrize(
    ("settings", "steps", "line"),
    [
        ({}, 2, "4 stages do not fit 2 steps and 8 blocks: 2 are left, which begin at steps [0, 1] and train [8, 4]"),
        ({"search": "zero_shot"}, 3, "5 stages do not fit 3 steps and 8 blocks: 3 are left"),
    ],
    ids=["fixed", "search"],
)
def test_it_is_said_in_one_line(
    settings: dict[str, Any], steps: int, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    train(Chain(8), GrowthConfig(stage_embedding=False, **settings), steps)
    (said,) = warnings_in(caplog)
    assert said.startswith(line)


def test_what_fits_is_not_talked_about(caplog: pytest.LogCaptureFixture) -> None:
    train(Chain(8), GrowthConfig(stage_embedding=False), 4)
    assert warnings_in(caplog) == []


@pytest.mark.parametrize(
    "targets", [["transformer_blocks.1.attn.to_q"], ["proj_out", "transformer_blocks.0.ff.net.2"]]
)
def test_lora_on_one_layer_of_one_block_trains(targets: list[str]) -> None:
    from peft import LoraConfig

    model: Any = SD3.build()
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=2, target_modules=targets))
    growth = GrowthScheduler(model, GrowthConfig())
    optimizer = torch.optim.AdamW([p for p in growth.parameters() if p.requires_grad], lr=1e-2)
    growth.prepare(model, num_training_steps=3, optimizer=optimizer)
    assert len(growth.plan.stages) == 1
    for step in range(3):
        SD3.loss(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        assert not growth.step()
    growth.fold(model)


def test_a_merged_run_trains_as_many_rows_of_the_stage_embedding() -> None:
    model = DIT.build()
    growth = GrowthScheduler(model, GrowthConfig(stage_embedding_init="carry"))
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-2, weight_decay=0.0)
    growth.prepare(model, num_training_steps=2, optimizer=optimizer)
    embedding = growth.stage_embedding
    assert embedding is not None
    for step in range(2):
        DIT.loss(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    assert embedding.table.abs().sum(1).bool().tolist() == [True, True, False, False]
    growth.fold(model)
