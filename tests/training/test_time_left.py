"""The time left knows the stages: by synthetic step times, and by the FLOPs of a real model."""

from __future__ import annotations

import pytest
import torch

from autoprog_diffusion.growth import GrowthConfig, GrowthPlan, GrowthScheduler, Stage
from autoprog_diffusion.training.measure import counted_flops, flops_by_module
from autoprog_diffusion.training.metrics import COLUMNS, Metrics
from autoprog_diffusion.training.time_left import (
    full_unit_flops,
    note_prediction,
    prediction_sentence,
    seconds_left,
    stage_costs,
    stage_flops,
)

from ..settings import BY_ID


STEPS = 80
PLAN = GrowthPlan(8, STEPS, tuple(Stage(20 * index, tuple(range(2 * index, 8))) for index in range(4)))
FLOPS = (8.0, 6.5, 5.0, 3.5)


def synthetic(steps: int, constant: float = 0.0) -> Metrics:
    """Step times of a machine that needs `constant` and a tenth of the FLOPs; a stage's first step takes longer."""
    metrics = Metrics()
    for step in range(steps):
        stage = PLAN.stage_at(step)
        warm = 3.0 if step in (0, 20, 40, 60) else 1.0
        row = {**dict.fromkeys(COLUMNS, 0.0), "stage": stage, "flops": FLOPS[stage]}
        metrics.add(**{**row, "seconds": warm * (constant + FLOPS[stage] / 10)})
    return metrics


def truth(steps: int, constant: float = 0.0) -> float:
    whole = synthetic(STEPS, constant)
    return sum(constant + whole.rows["flops"][step] / 10 for step in range(steps, STEPS))


@pytest.mark.parametrize("steps", [5, 21, 39, 45, 79])
def test_times_in_proportion_to_flops_are_told_exactly(steps: int) -> None:
    assert seconds_left(synthetic(steps), PLAN, FLOPS) == pytest.approx(truth(steps))


@pytest.mark.parametrize("steps", [22, 40, 61])
def test_a_constant_part_of_a_step_is_found_from_the_second_stage_on(steps: int) -> None:
    assert seconds_left(synthetic(steps, 0.5), PLAN, FLOPS) == pytest.approx(truth(steps, 0.5))
    naive = (STEPS - 5) * synthetic(5).rows["seconds"][-1]
    assert naive > 1.3 * truth(5)


def test_nothing_is_told_before_a_step_and_nothing_is_left_at_the_end() -> None:
    assert seconds_left(Metrics(), PLAN, FLOPS) is None
    assert seconds_left(synthetic(STEPS), PLAN, FLOPS) == 0


def test_the_summary_says_how_far_it_was() -> None:
    metrics = Metrics()
    assert prediction_sentence(metrics) is None
    whole = synthetic(STEPS)
    for step in range(STEPS):
        metrics.add(**{name: values[step] for name, values in whole.rows.items()})
        note_prediction(metrics, seconds_left(metrics, PLAN, FLOPS))
    assert [each["step"] for each in metrics.predictions] == [2, 22, 42, 62]
    assert "from the second stage on" in (prediction_sentence(metrics) or "")


@pytest.mark.parametrize("id", ["dit", "sd", "sd3", "flux"])
def test_flops_of_stages_to_come_are_those_of_their_steps(id: str) -> None:
    row = BY_ID[id]
    model = row.build()
    growth = GrowthScheduler(model, GrowthConfig())
    optimizer = torch.optim.SGD(growth.parameters(), lr=0.0)
    growth.prepare(model, num_training_steps=4, optimizer=optimizer)
    _, counts = flops_by_module(lambda: row.loss(model, 0).backward())
    units = full_unit_flops(counts, growth.layout, growth.plan.stages[0].blocks)
    metrics = Metrics()
    metrics.units = units
    for index, stage in enumerate(growth.plan.stages):
        true = counted_flops(lambda: row.loss(model, 0).backward())
        assert stage_flops(stage, growth.layout, units) == pytest.approx(
            true, rel=0.25
        )  # tiny models: attention and embedders weigh much
        metrics.add(**{**dict.fromkeys(COLUMNS, 0.0), "stage": index, "flops": true})
        assert stage_costs(metrics, growth)[index] == true
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
