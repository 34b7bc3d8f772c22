"""`ViTGrowth` in a run that is short, or resumed with another number of steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from autoprog_diffusion.growth import StateError
from autoprog_diffusion.vit.autoprog_one.config import ViTGrowthConfig
from autoprog_diffusion.vit.autoprog_one.scheduler import ViTGrowth

from . import growing
from .growing import config, train


Parts = tuple[nn.Module, ViTGrowth, torch.optim.Optimizer]


def started(settings: ViTGrowthConfig, steps: int) -> Parts:
    torch.manual_seed(0)
    model = growing.hf_vit()
    growth, optimizer = growing.start(model, settings, steps)
    return model, growth, optimizer


def resumed(parts: Parts, settings: ViTGrowthConfig, steps: int) -> Parts:
    states = copy.deepcopy([part.state_dict() for part in parts])
    other = started(settings, steps)
    for part, state in zip(other, states):
        part.load_state_dict(state)
    return other


def in_turn(searches: tuple[str, ...], steps: tuple[int, ...]) -> list[Any]:
    """Searches and numbers of steps; in every run of the suite every second pair, in the slow ones the others."""
    return [
        pytest.param(search, count, marks=pytest.mark.slow if (turn + number) % 2 else ())
        for turn, search in enumerate(searches)
        for number, count in enumerate(steps)
    ]


@pytest.mark.parametrize(("search", "steps"), in_turn(("fixed", "random", "one_shot", "zero_shot"), (1, 2, 3, 5)))
def test_a_short_run_trains_and_ends_with_the_whole_model(
    search: str, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    model, growth, optimizer = started(config(search), steps)
    assert ("3 stages do not fit" in caplog.text) == (len(growth.plan.stages) < 3)
    train(model, growth, optimizer, range(steps))
    assert growth.depth == 6
    growth.fold(model)


def test_stages_that_train_the_same_are_merged() -> None:
    settings = config("fixed", min_depth=1.0, resolutions=(8, 8, 16))
    assert [stage.start for stage in started(settings, 12)[1].plan.stages] == [0, 8]
    settings = config("fixed", min_depth=1.0, resolutions=(16, 16, 16))
    assert [stage.start for stage in started(settings, 12)[1].plan.stages] == [0]


@pytest.mark.parametrize(("search", "done"), in_turn(("one_shot", "fixed"), (9, 2, 5, 12)))
def test_a_longer_run_goes_on(search: str, done: int) -> None:
    """Steps 4 to 6 of the searched run are a supernet's, and 5 lies in it: the phase keeps its length."""
    settings = config(search)
    first = started(settings, 12)
    train(*first, range(done))
    longer = resumed(first, settings, 21)
    assert longer[1].plan == first[1].plan.extended(21, done)
    assert longer[1].searching == first[1].searching
    train(*longer, range(done, 17))
    again = resumed(longer, settings, 24)
    train(*again, range(17, 24))
    again[1].fold(again[0])
    assert [decision["step"] for decision in again[1].decisions[:1]] == [2] * (search == "one_shot")


def test_an_extension_changes_nothing_until_the_next_stage() -> None:
    settings = config("fixed")
    whole = started(settings, 12)
    train(*whole, range(5))
    first = started(settings, 12)
    train(*first, range(4))
    longer = resumed(first, settings, 60)
    train(*longer, range(4, 5))
    for name, value in whole[0].state_dict().items():
        assert torch.equal(value, longer[0].state_dict()[name]), name


def test_re_tokenization_is_extended_too() -> None:
    options: dict[str, Any] = {"min_depth": 1.0, "resolutions": (16, 16, 16), "strides": (16, 8, None)}
    settings = config("fixed", **options)
    first = started(settings, 12)
    train(*first, range(6))
    longer = resumed(first, settings, 18)
    assert [(stage.start, stage.stride) for stage in longer[1].plan.stages] == [(0, 16), (4, 8), (10, None)]
    train(*longer, range(6, 18))
    longer[1].fold(longer[0])


def test_a_run_too_short_to_grow_to_its_end_is_refused() -> None:
    settings = config("one_shot")
    first = started(settings, 12)
    train(*first, range(5))
    with pytest.raises(StateError, match=r"a run of 6 steps has no room .* ends with \d of 6 blocks"):
        resumed(first, settings, 6)
    ended = started(settings, 12)
    train(*ended, range(12))
    assert resumed(ended, settings, 3)[1].stage == 2
