"""The contracts of a plan that freezes: what has frozen rests, holds nothing, and every resume is exact."""

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
    in_turn,
    over_orders,
    start,
    step_moves_what_trains,
    used,
)
from .test_resume import AROUND, EVERY, assert_resumes


directed = over_orders("freeze", others=False)


@directed
def test_what_has_frozen_rests_and_holds_neither_gradient_nor_state(family: Family, order: str) -> None:
    model, growth, optimizer = start(family, order=order, direction="freeze")
    assert growth.plan.freezes
    named = used(family, model)
    sizes = []
    for step in range(6):
        frozen = step_moves_what_trains(family, model, named, optimizer, step)
        assert bool(frozen) == (growth.stage > 0)
        assert growth.step() == (step in (1, 3))
        # Before the host's zero_grad: what froze just now has let go of both at once.
        closed = [parameter for parameter in named.values() if not parameter.requires_grad]
        assert not [parameter for parameter in closed if parameter in optimizer.state or parameter.grad is not None]
        sizes.append(len(closed))
        optimizer.zero_grad()
    assert sizes[0] == 0
    assert sizes[0] < sizes[1] < sizes[3]


@pytest.mark.parametrize(
    ("family", "begins"),
    [
        *(in_turn(BY_ID[id], AROUND, default=id != "dit") for id in CORE),
        *(in_turn(BY_ID[id], EVERY, name=f"{id}-every", default=id == "dit") for id in CORE),
    ],
)
def test_resume_of_a_freezing_plan_is_bit_exact(family: Family, begins: Iterable[int]) -> None:
    settings: dict[str, Any] = {"order": "suffix", "direction": "freeze"}
    assert_resumes(family, begins, **settings, **averaged(family))


@core
def test_fold_gives_back_a_plain_model_that_trains_everything(family: Family) -> None:
    assert_folds_to_a_plain_model(family, order="suffix", direction="freeze")
