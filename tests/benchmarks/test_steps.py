"""What the step benchmarks count, against literal twins."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def _in_folder(benchmark_folder: Callable[[str], Path]) -> None:
    benchmark_folder("stage_limit")


@pytest.fixture
def dit() -> tuple[nn.Module, dict[str, Any]]:
    from models import DIT, without_zeros

    model = without_zeros(DIT.build(tiny=True)).train()
    inputs = DIT.inputs(model.config)
    return model, {name: torch.cat([value] * 2) for name, value in inputs.items()}


def test_candidates_begin_with_full_training_and_hold_every_order(dit: tuple[nn.Module, dict[str, Any]]) -> None:
    from steps import candidates

    found = candidates(dit[0], (0.5,))
    assert found[0].blocks == tuple(range(6))
    assert len({candidate.name for candidate in found}) == len(found) == 1 + 9 + 3
    by_name = {candidate.name: candidate for candidate in found}
    assert by_name["suffix 0.5"].blocks == (3, 4, 5)
    assert by_name["prefix 0.5"].blocks == (0, 1, 2)
    assert by_name["full, resolution 0.5, batch x4"].batch == 4


def test_inputs_shrink_and_multiply(dit: tuple[nn.Module, dict[str, Any]]) -> None:
    from models import FLUX
    from steps import Candidate, inputs_of

    smaller = inputs_of(Candidate("", (0,), 0.5, 4), dit[1])
    assert smaller["hidden_states"].shape == (8, 4, 2, 2)
    assert smaller["timestep"].shape == smaller["class_labels"].shape == (8,)
    config = FLUX.build(tiny=True).config
    packed = inputs_of(Candidate("", (0,), 0.5), FLUX.inputs(config))
    assert packed["hidden_states"].shape[1] == len(packed["img_ids"]) == 4


def test_bytes_and_flops_are_those_of_a_literal_count(dit: tuple[nn.Module, dict[str, Any]]) -> None:
    """A linear layer whose input needs gradient saves its input; frozen parts hold nothing of the optimizer."""
    from steps import Steps, candidates

    model, inputs = dit
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps, found = Steps(model, inputs), candidates(model)
    for candidate in (found[0], found[4]):
        held = steps.bytes(candidate)
        with steps.at(candidate) as (optimizer, _):
            sizes = [p.nbytes for p in model.parameters() if p.requires_grad]
            assert len(optimizer.state) == len(sizes)
        assert held.gradients == sum(sizes)
        assert held.optimizer == 2 * sum(sizes) + 4 * len(sizes)  # two moments, and a step count each
    full, suffix = (steps.bytes(found[k]) for k in (0, 4))
    assert suffix.activations < full.activations
    assert steps.flops(found[4]) < steps.flops(found[0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_saved_tensors_of_one_layer_are_counted_once() -> None:
    from steps import Candidate, Steps

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer_blocks = nn.ModuleList([nn.Linear(3, 3, bias=False) for _ in range(2)])

        def forward(self, timestep: torch.Tensor) -> tuple[torch.Tensor]:
            for block in self.transformer_blocks:
                timestep = block(timestep).relu()
            return (timestep,)

    Twice._repeated_blocks, Twice._no_split_modules = ["Linear"], None  # as Diffusers' classes declare them
    held = Steps(Twice(), {"timestep": torch.randn(5, 3)}).bytes(Candidate("full", (0, 1)))
    # The input, what each relu gives (that of the first is also the second's input); the mean square saves the last.
    assert held.activations == 3 * 5 * 3 * 4
    assert held.gradients == 2 * 9 * 4


def test_the_interval_of_the_overhead_holds_the_median(
    dit: tuple[nn.Module, dict[str, Any]], benchmark_folder: Callable[[str], Path]
) -> None:
    benchmark_folder("overhead")
    from run import interval, measure

    low, high = interval([float(k) for k in range(101)], random.Random(0))
    assert 35 < low < 50 < high < 65
    for row in measure(*dit, pairs=2):
        assert row["low"] <= row["overhead"] <= row["high"]
        assert 0 < row["python_us"] < 1e5
    assert not dit[0]._forward_hooks
    assert not dit[0]._forward_pre_hooks
