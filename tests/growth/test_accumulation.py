"""Stages say how many forward passes make an optimizer step: loops, positions in epochs, plans, refusals."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from autoprog_diffusion import GrowthConfig, GrowthPlan, GrowthScheduler, Stage
from autoprog_diffusion.growth import ConfigError, OrderError, PlanError
from autoprog_diffusion.growth.plan import join_stages
from autoprog_diffusion.training.epochs import Epochs
from autoprog_diffusion.training.flag_checks import check_accumulations

from .looping import SMALL, scheduler


SETTINGS: dict[str, Any] = {"num_stages": 3, "stage_embedding": False}
PASSES = (1, 3, 2)
STEPS = 6


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True, gradient_accumulation_steps=2)


def batch_loss(model: Any, index: int) -> Tensor:
    return SMALL.loss(model, index)


def literal(passes_of: list[int]) -> dict[str, Tensor]:
    """Every optimizer step by hand: the mean loss of its batches."""
    model = SMALL.build().train()
    growth = scheduler(model, GrowthConfig(**SETTINGS))
    optimizer = torch.optim.SGD(growth.parameters(), lr=0.1)
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    index = 0
    for passes in passes_of:
        losses = []
        for _ in range(passes):
            losses.append(batch_loss(model, index))
            index += 1
        torch.stack(losses).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    return model.state_dict()


def accumulated(accelerator: Accelerator, **settings: Any) -> dict[str, Tensor]:
    """A loop of Diffusers' shape, which leaves the number of passes to the accelerator."""
    model = SMALL.build().train()
    growth = GrowthScheduler(model, GrowthConfig(**SETTINGS, **settings), accelerator, blocks=["transformer_blocks.*"])
    optimizer = torch.optim.SGD(growth.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    index = 0
    while growth.steps < STEPS:
        with accelerator.accumulate(model):
            accelerator.backward(batch_loss(model, index))
            index += 1
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                growth.step()
    growth.fold(model)
    return accelerator.unwrap_model(model).state_dict()


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ({"accumulations": PASSES}, [1, 1, 3, 3, 2, 2]),
        ({}, [2] * STEPS),  # the loop's own
    ],
)
def test_a_loop_accumulates_as_its_stages_say(
    accelerator: Accelerator, settings: dict[str, Any], passes: list[int]
) -> None:
    ours = accumulated(accelerator, **settings)
    for name, value in literal(passes).items():
        torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-7)


def test_stages_without_a_number_get_the_loops_own(accelerator: Accelerator) -> None:
    model = SMALL.build().train()
    growth = GrowthScheduler(model, GrowthConfig(**SETTINGS), accelerator, blocks=["transformer_blocks.*"])
    optimizer = torch.optim.SGD(growth.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    stages = (Stage(0, (0, 1), accumulation=5), Stage(1, (1,)))
    plan = GrowthPlan(8, 2, stages)
    growth.prepare(model, num_training_steps=2, optimizer=optimizer, plan=plan)
    assert (growth.accumulation, accelerator.gradient_accumulation_steps) == (5, 5)
    for _ in range(5):
        with accelerator.accumulate(model):
            accelerator.backward(batch_loss(model, 0))
            optimizer.step()
            optimizer.zero_grad()
    growth.step()
    assert (growth.accumulation, accelerator.gradient_accumulation_steps) == (2, 2)


def walk(batches: int, passes: list[int]) -> list[tuple[int, int]]:
    """The literal twin of `Epochs`: one step after the other."""
    epoch = 0
    done = 0
    found = []
    for asked in passes:
        found.append((epoch, done))
        done += min(asked, batches - done)
        if done == batches:
            epoch += 1
            done = 0
    return found


def test_positions_in_epochs_are_those_of_single_steps() -> None:
    numbers = random.Random(0)
    for _ in range(200):
        batches = numbers.randint(1, 9)
        lengths = [numbers.randint(1, 12) for _ in range(numbers.randint(1, 4))]
        passes = [numbers.randint(1, 11) for _ in lengths]
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        epochs = Epochs(batches, starts=starts, passes=passes)
        single = [asked for asked, length in zip(passes, lengths, strict=True) for _ in range(length)]
        expected = walk(batches, single)
        assert [epochs.position(step) for step in range(len(single))] == expected
        for step, (_, done) in enumerate(expected):
            assert epochs.passes_of(step) == min(single[step], batches - done)


def test_a_plan_keeps_them_and_older_plans_have_none() -> None:
    plan = GrowthPlan(4, 9, (Stage(0, (0, 1, 2, 3)), Stage(5, (3,), accumulation=4)))
    values = plan.to_dict()
    assert "accumulation" not in values["stages"][0]
    assert values["stages"][1]["accumulation"] == 4
    assert GrowthPlan.from_dict(values) == plan
    assert [stage.accumulation for stage in plan.rescaled(18).stages] == [None, 4]
    joined = join_stages((Stage(0, (0,), accumulation=2), Stage(0, (1,), accumulation=3)), 5)
    assert joined == (Stage(0, (0, 1), accumulation=3),)
    with pytest.raises(PlanError, match="accumulation 0 is not allowed"):
        Stage(0, (0,), accumulation=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulations": (1, 2)}, "has 2 values for num_stages=3"),
        ({"accumulations": (1, 2, 0)}, "whole numbers of at least 1"),
        ({"accumulations": (1, 2, 1.5)}, "whole numbers of at least 1"),
        ({"accumulations": (1, 2, 4), "search": "zero_shot"}, 'Use search="none"'),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GrowthConfig(**{"num_stages": 3, **settings})


def test_a_step_inside_the_backward_pass_accumulates_nothing() -> None:
    model = SMALL.build().train()
    growth = scheduler(model, GrowthConfig(**SETTINGS, accumulations=(1, 1, 2)))
    optimizer = torch.optim.SGD(growth.parameters(), lr=0.1)
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    with pytest.raises(OrderError, match="gradient_accumulation_steps=2"):
        growth.step_in_backward(optimizer)


def test_a_run_told_in_epochs_needs_its_steps() -> None:
    check_accumulations(None, None)
    check_accumulations((1, 2), 100)
    with pytest.raises(ConfigError, match="--accumulations 1 2 .*--max_train_steps"):
        check_accumulations((1, 2), None)
