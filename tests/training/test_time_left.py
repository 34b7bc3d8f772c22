"""The time left knows the stages: by a clock that the test gives, with the FLOPs of real models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprog_diffusion.files import PLANNED_FILE
from autoprog_diffusion.growth import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth.tape import Tape
from autoprog_diffusion.reporting.stages import Planned
from autoprog_diffusion.training.metrics import COLUMNS, Metrics
from autoprog_diffusion.training.prediction import is_ours, prediction_sentence
from autoprog_diffusion.training.time_left import TimeLeft

from ..settings import BY_ID


STEPS = 80
STAGES = 4
Clock = Callable[[int, float], float]


class Loop:
    """A run of a real model whose steps take what a clock says.

    Args:
        id: Of the model.
        clock: Step and its FLOPs in 10^9 -> its seconds.
        file: Where predictions are written.
        config: What trains when.
    """

    def __init__(self, id: str, clock: Clock, file: Path | None = None, **config: Any) -> None:
        self.row = BY_ID[id]
        self.clock = clock
        self.model = self.row.build()
        self.growth = GrowthScheduler(self.model, GrowthConfig(num_stages=STAGES, **config))
        optimizer = torch.optim.SGD(self.growth.parameters(), lr=0.0)
        self.growth.prepare(self.model, num_training_steps=STEPS, optimizer=optimizer)
        self.metrics = Metrics()
        self.left = TimeLeft(self.metrics, self.growth, accumulation=2, file=file)
        self.flops: dict[int, float] = {}
        self.told: list[float] = []

    def loss(self) -> torch.Tensor:
        return self.row.loss(self.model, 0)

    def run(self) -> None:
        """Count every stage when it begins, as the trainer does, and step."""
        for step in range(STEPS):
            stage = self.growth.stage
            if stage not in self.flops:
                self.flops[stage] = 2 * self.left.counted(self.model, self.loss)
                self.forget_gradients()
            flops = self.flops[stage]
            seconds = self.clock(step, flops / 1e9)
            self.metrics.add(**{**dict.fromkeys(COLUMNS, 0.0), "stage": stage, "flops": flops, "seconds": seconds})
            self.told.append(self.left.tell() or 0.0)
            self.growth.step()

    def forget_gradients(self) -> None:
        for parameter in self.growth.parameters():
            parameter.grad = None

    def rest(self, step: int) -> float:
        """What the steps after one took."""
        return sum(self.metrics.rows["seconds"][step + 1 :])


def proportional(step: int, flops: float) -> float:
    return flops


def with_overhead(step: int, flops: float) -> float:
    """Half of the first stage's time is not computation, and the first step of a stage takes three times as long."""
    return (3 if step % (STEPS // STAGES) == 0 else 1) * (0.01 + flops)


@pytest.mark.parametrize("direction", ["freeze", "unfreeze"])
@pytest.mark.parametrize("id", ["sd", "dit", "sd3", "flux"])
def test_flops_of_all_stages_are_known_in_the_first_one(id: str, direction: str) -> None:
    loop = Loop(id, proportional, direction=direction)
    loop.run()
    assert list(loop.metrics.costs.values()) == [loop.flops[stage] for stage in range(STAGES)]
    assert loop.told[0] == pytest.approx(loop.rest(0))


@pytest.mark.parametrize("id", ["sd", "dit", "sd3", "flux"])
def test_from_the_second_stage_on_it_is_within_ten_percent(id: str) -> None:
    loop = Loop(id, with_overhead)
    loop.run()
    second = loop.growth.plan.stages[1].start
    for step in range(second + 1, STEPS - 1):
        assert loop.told[step] == pytest.approx(loop.rest(step), rel=0.1)
    assert loop.told[-1] == 0.0


def test_a_machine_that_slows_down_is_followed() -> None:
    loop = Loop("dit", lambda step, flops: flops * (1 if step < 25 else 2))
    loop.run()
    last = loop.growth.plan.stages[3].start
    assert loop.told[last + 2] == pytest.approx(loop.rest(last + 2))


def test_a_resumed_run_tells_what_the_unbroken_one_tells() -> None:
    loop = Loop("dit", with_overhead)
    loop.run()
    resumed = Metrics()
    resumed.load_state_dict(loop.metrics.state_dict())
    assert TimeLeft(resumed, loop.growth, accumulation=2).of_plan() == loop.left.of_plan()


def test_the_summary_says_how_far_it_was() -> None:
    assert prediction_sentence(Metrics()) is None
    loop = Loop("dit", with_overhead)
    loop.run()
    assert [each["step"] for each in loop.metrics.predictions] == [3, 23, 43, 63]
    assert prediction_sentence(loop.metrics) == (
        "the time left was told within 0% of what the rest took, from the second stage on."
    )


def test_the_report_reads_what_was_predicted_of_the_stages(tmp_path: Path) -> None:
    file = tmp_path / PLANNED_FILE
    loop = Loop("dit", proportional, file=file)
    loop.run()
    stages = [Planned.read(row) for row in json.loads(file.read_text())["stages"]]
    assert [stage.blocks for stage in stages] == [len(stage.blocks) for stage in loop.growth.plan.stages]
    truth = [flops / 1e9 for flops in loop.flops.values()]
    assert [stage.step_seconds for stage in stages] == pytest.approx(truth)
    assert is_ours(file)
    file.write_text('{"stages": []}')  # the user's, by `autoprog-diffusion plan --json`
    Loop("dit", proportional, file=file).run()
    assert file.read_text() == '{"stages": []}'


def test_where_the_tape_and_the_counter_disagree_the_tape_is_left_aside() -> None:
    loop = Loop("dit", proportional)
    loop.left.note(Tape(parameters=dict.fromkeys(loop.growth.layout.names, 0)), counted=1)
    assert not loop.metrics.costs
    loop.metrics.add(**{**dict.fromkeys(COLUMNS, 1.0), "stage": 0, "searching": 0.0})
    assert loop.left.of_plan() == [1.0] * STAGES
    assert loop.left.tell() == pytest.approx(STEPS - 1)


def test_steps_of_unequal_work_are_told_as_mean_ones() -> None:
    """Small and large batches in turn, of which no median is a mean."""
    works = (0.25, 1.9, 0.25, 1.6)

    def work(step: int, passes: int | None = None) -> float:
        return 1.0 if passes else works[step % 4]

    loop = Loop("unet2d", lambda step, flops: flops * work(step))
    loop.left.work = work
    loop.run()
    for step in range(8, STEPS - 20, 4):
        assert loop.told[step - 1] == pytest.approx(loop.rest(step - 1), rel=0.05)
