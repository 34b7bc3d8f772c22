"""A run resumed at any step is the same run, to the last bit."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprog_diffusion import GrowthScheduler

from ..settings import BY_ID, FAMILIES, Family
from .common import CORE, in_turn, start, train


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, growth: GrowthScheduler) -> io.BytesIO:
    buffer = io.BytesIO()
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "growth": growth.state_dict()}
    torch.save(states, buffer)
    buffer.seek(0)
    return buffer


def assert_same(ours: Any, theirs: Any, path: str = "") -> None:
    """Equal to the last bit, tensors included."""
    if isinstance(ours, Tensor):
        assert torch.equal(ours, theirs), path
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), path
        for key in ours:
            assert_same(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), path
        for index, (a, b) in enumerate(zip(ours, theirs)):
            assert_same(a, b, f"{path}.{index}")
    else:
        assert ours == theirs, path


def assert_resumes(family: Family, begins: Iterable[int], **settings: Any) -> None:
    """A run resumed after each of `begins` steps ends as the whole run does."""
    model, growth, optimizer = start(family, **settings)
    snapshots = [snapshot(model, optimizer, growth)]
    for step in range(6):
        train(family, model, optimizer, step)
        growth.step()
        snapshots.append(snapshot(model, optimizer, growth))
    whole = torch.load(snapshots[-1], weights_only=True)
    for begin in begins:
        buffer = snapshots[begin]
        buffer.seek(0)
        states = torch.load(buffer, weights_only=True)
        model, growth, optimizer = start(family, **settings)
        model.load_state_dict(states["model"])
        optimizer.load_state_dict(states["optimizer"])
        growth.load_state_dict(copy.deepcopy(states["growth"]))
        for step in range(begin, 6):
            train(family, model, optimizer, step)
            growth.step()
        ours = torch.load(snapshot(model, optimizer, growth), weights_only=True)
        assert_same(ours, whole, f"resumed at {begin}")


EVERY = range(6)
AROUND = (2, 3)  # at a stage boundary and inside a stage
# At every step for one family in every run of the suite, for one of every kind of blocks in the slow ones.
CASES = [
    *(in_turn(family, "suffix", AROUND, default=family.id in CORE and family.id != "dit") for family in FAMILIES),
    *(in_turn(BY_ID[id], "suffix", EVERY, name=f"{id}-every", default=id == "dit") for id in CORE),
    *(in_turn(BY_ID["dit"], order, AROUND, name=f"dit-{order}") for order in ("interleaved", "prefix")),
]


@pytest.mark.parametrize(("family", "order", "begins"), CASES)
def test_resume_at_any_step_is_bit_exact(family: Family, order: str, begins: Iterable[int]) -> None:
    settings: dict[str, Any] = {"order": order}
    if family.points:
        settings |= {"ema_decay": 0.9, "stage_dropout": 0.2, "stage_embedding_init": "carry"}
    assert_resumes(family, begins, **settings)
