"""Blocks and weights that are left out, computed again or normalised for good reason: no check may speak up."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from autoprog_diffusion import GrowthConfig, GrowthScheduler

from .looping import UNET, begin, run


DIRECTIONS = pytest.mark.parametrize("direction", ["freeze", "unfreeze"])
STEPS = 4


def train(
    model: nn.Module, growth: GrowthScheduler, optimizer: torch.optim.Optimizer, *, steps: int, width: int
) -> None:
    """A whole run on random numbers."""
    for _ in range(steps):
        model(torch.randn(2, width)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    growth.fold(model)


class Experts(nn.Module):
    """A block with a layer that always runs, experts that one of the steps uses, and a tensor that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.unused = nn.Parameter(torch.zeros(3))
        self.calls = itertools.count()

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.layer(value) + self.experts[next(self.calls) % 3](value)


class Dropped(nn.Linear):
    """A layer that is left out in some steps (layer dropping), so that nothing in it gets a gradient."""

    def __init__(self, start: int) -> None:
        super().__init__(4, 4)
        self.calls = itertools.count(start)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return super().forward(value) if next(self.calls) % 3 else value


@DIRECTIONS
@pytest.mark.parametrize("kind", ["experts", "dropped", "never"])
def test_misuse_silent_blocks_without_gradient(direction: Any, kind: str) -> None:
    blocks = {
        "experts": [Experts() for _ in range(4)],
        "dropped": [Dropped(start) for start in (0, 1, 2, 0)],
        "never": [nn.Linear(4, 4) for _ in range(4)],
    }[kind]
    model = nn.Sequential(*blocks, nn.Linear(4, 4))
    if kind == "never":
        model[2].forward = lambda value: value
    growth = GrowthScheduler(
        model,
        GrowthConfig(num_stages=4, min_trainable=0.25, direction=direction, stage_embedding=False),
        blocks=["[0-3]"],
    )
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-3)
    growth.prepare(model, num_training_steps=24, optimizer=optimizer)
    train(model, growth, optimizer, steps=24, width=4)


@DIRECTIONS
@pytest.mark.parametrize("reentrant", [True, False])
def test_misuse_silent_checkpointing_where_gradients_arrive(direction: Any, reentrant: bool) -> None:
    """Not reentrant, or where the inputs of every block require gradient."""
    order = "prefix" if reentrant else "suffix"
    model, growth, optimizer = begin(STEPS, family=UNET, direction=direction, order=order)
    model.enable_gradient_checkpointing(
        gradient_checkpointing_func=lambda *args, **kwargs: checkpoint(*args, use_reentrant=reentrant, **kwargs)
    )
    run((model, growth, optimizer), STEPS, UNET)
    growth.fold(model)


@DIRECTIONS
def test_misuse_silent_steps_without_a_backward_pass(direction: Any) -> None:
    model, growth, optimizer = begin(STEPS, direction=direction)
    for _ in range(STEPS):
        optimizer.step()
        growth.step()
    growth.fold(model)


def test_misuse_silent_calls_without_training() -> None:
    model, growth, _ = begin(STEPS)
    for _ in range(3 * STEPS):
        growth.step()
    growth.fold(model)


class Normalised(nn.Linear):
    """Keeps its weights normalised, as EDM2 does: also frozen ones move by a rounding error."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.weight.copy_(self.weight / self.weight.norm(dim=1, keepdim=True))
        return super().forward(value)


def test_misuse_silent_weights_that_are_normalised_in_every_pass() -> None:
    model = nn.Sequential(*[Normalised(33, 33) for _ in range(4)])
    growth = GrowthScheduler(
        model, GrowthConfig(num_stages=2, direction="unfreeze", stage_embedding=False), blocks=["*"]
    )
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-3)
    model(torch.randn(1, 33))
    growth.prepare(model, num_training_steps=40, optimizer=optimizer)
    train(model, growth, optimizer, steps=40, width=33)
