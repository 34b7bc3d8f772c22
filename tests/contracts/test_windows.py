"""The contracts of windows: what has closed rests and holds nothing, every block has its turn, resumes are exact."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from ..settings import BY_ID, Family
from .common import (
    CORE,
    assert_folds_to_a_plain_model,
    averaged,
    core,
    growable,
    in_turn,
    over_orders,
    start,
    step_moves_what_trains,
    used,
)
from .test_resume import EVERY, assert_resumes


windowed = over_orders("window", others=False)


# The flag sets one list of units, for every family and direction alike.
EMBEDDERS = (("dit", "freeze"), ("sd", "window"))


@windowed
def test_what_has_closed_rests_and_every_block_has_its_turn(family: Family, order: str) -> None:
    model, growth, optimizer = start(family, order=order, direction="window")
    windows = len(growth.plan.stages)
    assert windows == min(3, len(growth.layout.blocks))
    named = used(family, model)
    turns = dict.fromkeys(named, 0)
    for step in range(6):
        frozen = step_moves_what_trains(family, model, named, optimizer, step)
        assert frozen
        for name in named.keys() - frozen:
            turns[name] += 1
        before = {name for name, parameter in named.items() if parameter.requires_grad}
        entered = growth.step()
        # Before the host's zero_grad: what closed just now has let go of both at once, what opened has neither yet.
        now = {name for name, parameter in named.items() if parameter.requires_grad}
        changed = before ^ now
        assert bool(changed) == entered
        fresh = [named[name] for name in changed | (named.keys() - now)]
        assert not [parameter for parameter in fresh if parameter in optimizer.state or parameter.grad is not None]
        optimizer.zero_grad()
    always = set(growth.layout.outputs.parameters)
    assert all(turns[name] == 6 for name in always.intersection(named))
    if windows == 3:
        assert all(turns[name] == 2 for name in named.keys() & growable(family) - always)


@pytest.mark.parametrize(
    ("family", "direction"),
    [
        in_turn(BY_ID[name], way, name=f"{name}-{way}", default=(name, way) in EMBEDDERS)
        for name in CORE
        for way in ("freeze", "window")
    ],
)
def test_embedders_may_train_in_every_stage(family: Family, direction: str) -> None:
    model, growth, optimizer = start(family, order="suffix", direction=direction, embedders_always=True)
    named = used(family, model)
    inputs = set(growth.layout.inputs.parameters).intersection(named)
    assert inputs
    for step in range(6):
        frozen = step_moves_what_trains(family, model, named, optimizer, step)
        assert not inputs & frozen
        assert all(named[name] in optimizer.state for name in inputs)
        assert bool(frozen) == (direction == "window" or growth.stage > 0)
        growth.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("family", "state", "begins"),
    [
        # What is parked is asked for at every step; what is released, inside the first sweep and the second one.
        in_turn(BY_ID["dit"], "park", EVERY, name="dit-park"),
        in_turn(BY_ID["dit"], "release", (1, 4), name="dit-release-twice"),
        *(
            in_turn(BY_ID[id], state, EVERY, name=f"{id}-{state}", default=False)
            for id in CORE
            for state in ("release", "park")
            if (id, state) != ("dit", "park")
        ),
    ],
)
def test_resume_of_windows_is_bit_exact(family: Family, state: str, begins: Iterable[int]) -> None:
    settings: dict[str, Any] = {"order": "suffix", "direction": "window", "num_stages": 4, "sweeps": 2}
    settings["window_state"] = state
    assert_resumes(family, begins, **settings, **averaged(family))


@core
def test_fold_gives_back_a_plain_model_that_trains_everything(family: Family) -> None:
    assert_folds_to_a_plain_model(family, order="suffix", direction="window")
