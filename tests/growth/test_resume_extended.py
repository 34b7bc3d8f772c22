"""A run that is resumed with another number of steps goes on: what is past stays, what is to come is moved."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprog_diffusion import GrowthConfig, GrowthPlan, GrowthScheduler, Stage
from autoprog_diffusion.growth import PlanError, StateError

from .preparing import DIT


FREEZE: dict[str, Any] = {"num_stages": 4}
UNFREEZE: dict[str, Any] = {"num_stages": 4, "direction": "unfreeze", "order": "interleaved"}
OFF: dict[str, Any] = {"num_stages": 1, "min_trainable": 1.0, "stage_embedding": False}
SEARCH: dict[str, Any] = {"num_stages": 3, "search": "zero_shot"}
SIZES: dict[str, Any] = {"num_stages": 2, "resolutions": (0.5, 1.0), "stage_embedding_init": "carry", "ema_decay": 0.9}
WINDOW: dict[str, Any] = {"num_stages": 4, "direction": "window", "sweeps": 2, "window_state": "park"}
CONFIGS = {"freeze": FREEZE, "unfreeze": UNFREEZE, "window": WINDOW, "off": OFF, "search": SEARCH, "sizes": SIZES}


@dataclass
class Loop:
    """A plain loop around a small DiT."""

    settings: dict[str, Any]
    steps: int
    plan: GrowthPlan | None = None

    def __post_init__(self) -> None:
        self.model: nn.Module = DIT.build()
        self.growth = GrowthScheduler(self.model, GrowthConfig(**self.settings))
        self.optimizer = torch.optim.AdamW(self.growth.parameters(), lr=1e-2)
        self.growth.prepare(self.model, num_training_steps=self.steps, plan=self.plan, optimizer=self.optimizer)

    def train(self, steps: Iterable[int]) -> Loop:
        for step in steps:
            DIT.loss(self.model, step).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.growth.step()
        return self

    def resumed(self, steps: int, plan: GrowthPlan | None = None, **changes: Any) -> Loop:
        """A new process that loads this one's checkpoint."""
        states = copy.deepcopy([part.state_dict() for part in (self.model, self.optimizer, self.growth)])
        other = Loop({**self.settings, **changes}, steps, plan)
        for part, state in zip((other.model, other.optimizer, other.growth), states):
            part.load_state_dict(state)
        return other

    @property
    def starts(self) -> list[int]:
        return [stage.start for stage in self.growth.plan.stages]

    def weights(self) -> dict[str, Tensor]:
        return dict(self.growth._applier.named())


def same(ours: Loop, theirs: Loop) -> None:
    weights = theirs.weights()
    for name, value in ours.weights().items():
        assert torch.equal(value, weights[name]), name


def random_plan(rng: random.Random, steps: int) -> GrowthPlan:
    count = rng.randint(1, min(6, steps))
    starts = [0, *sorted(rng.sample(range(1, steps), count - 1))]
    if rng.random() < 0.3:  # windows
        chosen = [tuple(sorted(rng.sample(range(8), rng.randint(0, 8)))) for _ in starts]
        return GrowthPlan(8, steps, tuple(Stage(start, some) for start, some in zip(starts, chosen)))
    blocks = sorted((rng.randint(1, 8) for _ in starts), reverse=rng.random() < 0.5)
    return GrowthPlan(8, steps, tuple(Stage(start, tuple(range(n))) for start, n in zip(starts, blocks)))


# The plan


def test_what_is_past_stays_and_what_is_to_come_is_moved() -> None:
    plan = GrowthPlan(4, 100, tuple(Stage(25 * k, tuple(range(4 - k))) for k in range(4)))
    assert [stage.start for stage in plan.extended(200, at_step=30).stages] == [0, 25, 78, 139]
    assert [stage.start for stage in plan.extended(200, at_step=0).stages] == [0, 50, 100, 150]
    assert [stage.start for stage in plan.extended(200, at_step=50).stages] == [0, 25, 50, 125]
    assert [stage.start for stage in plan.extended(200, at_step=100).stages] == [0, 25, 50, 75]
    assert plan.extended(100, at_step=30) == plan
    assert [stage.start for stage in plan.extended(35, at_step=30).stages] == [0, 25, 31, 33]
    assert [stage.start for stage in plan.extended(32, at_step=30).stages] == [0, 25, 31]
    assert plan.extended(32, at_step=30).stages[-1].blocks == (0, 1)  # of the two that joined, the fuller one
    assert [stage.start for stage in plan.extended(30, at_step=30).stages] == [0, 25]
    with pytest.raises(PlanError, match="30 steps are done, so the run cannot end after 29: use at least 30"):
        plan.extended(29, at_step=30)


def test_extensions_of_random_plans_are_plans_with_the_same_past() -> None:
    rng = random.Random(0)
    for _ in range(3000):
        plan = random_plan(rng, rng.randint(1, 40))
        done = rng.randint(0, plan.num_training_steps)
        steps = rng.randint(max(done, 1), 90)
        longer = plan.extended(steps, done, shortest=rng.randint(1, 3))
        current = plan.stage_at(done)
        assert longer.stages[: current + 1] == plan.stages[: current + 1]
        assert longer.stage_at(done) == current
        assert longer.num_training_steps in (steps, done + 1)
        if steps >= plan.num_training_steps:
            assert [stage.blocks for stage in longer.stages] == [stage.blocks for stage in plan.stages]
            assert all(new.start >= old.start for new, old in zip(longer.stages, plan.stages))


def test_a_search_keeps_the_steps_it_looks_at() -> None:
    plan = GrowthPlan(4, 40, tuple(Stage(start, ()) for start in (0, 2, 10, 20, 30)))
    shorter = plan.extended(16, at_step=4, shortest=4)
    assert [stage.start for stage in shorter.stages] == [0, 2, 9, 12]
    assert [stage.start for stage in plan.extended(41, at_step=9, shortest=4).stages] == [0, 2, 10, 20, 30]


# The scheduler


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("done", [3, 8])
def test_a_longer_run_equals_one_that_followed_its_plan_from_the_start(name: str, done: int) -> None:
    settings = CONFIGS[name]
    first = Loop(settings, 8).train(range(done))
    longer = first.resumed(13)
    expected = first.growth.plan.extended(13, done)
    assert longer.growth.plan == expected
    assert longer.growth.stage == first.growth.stage
    longer.train(range(done, 13))
    assert longer.growth.plan.stages[-1].blocks == expected.stages[-1].blocks
    if name != "search":
        same(longer, Loop(settings, 13, expected).train(range(13)))
    longer.growth.fold(longer.model)


@pytest.mark.parametrize("name", ["freeze", "off", "search"])
def test_several_extensions_in_a_row(name: str) -> None:
    loop = Loop(CONFIGS[name], 6).train(range(3))
    done = 3
    for steps in (10, 11, 24):
        loop = loop.resumed(steps).train(range(done, done + 3))
        done += 3
        same_steps = loop.resumed(steps)
        assert same_steps.growth.plan == loop.growth.plan
        assert same_steps.growth.history == loop.growth.history
    assert loop.growth.plan.num_training_steps == 24
    assert [record.step for record in loop.growth.history if record.step] == [s for s in loop.starts if 0 < s <= done]


def test_a_run_of_merged_stages_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    ended = Loop(FREEZE, 2).train(range(2))
    assert ended.starts == [0, 1]
    longer = ended.resumed(6)
    assert longer.starts == [0, 1]
    assert "resumed at step 2 with 6 steps instead of 2: the 2 stages begin at steps [0, 1]" in caplog.messages
    longer.train(range(2, 6))
    again = longer.resumed(9)
    assert again.growth.plan.num_training_steps == 9
    again.train(range(6, 9))
    again.growth.fold(again.model)


def test_a_run_too_short_to_be_searched_is_not_searched_later() -> None:
    short = Loop(SEARCH, 3).train(range(2))
    longer = short.resumed(30).train(range(2, 30))
    assert longer.growth.decisions == []
    assert longer.resumed(31).growth.plan == longer.growth.plan.extended(31, 30)


def test_a_searched_run_may_be_shortened() -> None:
    loop = Loop(SEARCH, 30).train(range(12))
    assert loop.starts == [0, 2, 10, 20]
    shorter = loop.resumed(14)
    assert shorter.starts == [0, 2, 10, 13]
    shorter.train(range(12, 14))
    assert shorter.growth.plan.stages[-1].blocks == tuple(range(8))


def test_at_the_last_step_or_beyond_the_stage_stays() -> None:
    """As Diffusers' scripts, which resume a finished run with fewer steps and take one more."""
    for name in ("freeze", "unfreeze", "search"):
        for steps in (2, 8):
            ended = Loop(CONFIGS[name], 8).train(range(8))
            again = ended.resumed(steps)
            assert again.growth.plan.stages == ended.growth.plan.stages
            assert not again.train([8]).growth.stage < ended.growth.stage


@pytest.mark.parametrize(
    "settings", [FREEZE, SIZES, {**UNFREEZE, "stage_dropout": 0.5}], ids=["plain", "average", "null"]
)
def test_a_checkpoint_written_after_fold_adds_no_row_twice(settings: dict[str, Any]) -> None:
    ended = Loop(settings, 8).train(range(8))
    ended.growth.fold(ended.model)
    again = ended.resumed(12)
    inputs = DIT.inputs(0, 2)
    with torch.no_grad(), again.growth.folded(again.model):
        assert torch.equal(DIT.output(again.model.eval(), inputs), DIT.output(ended.model.eval(), inputs))
    again.model.train()
    again.train(range(8, 12)).growth.fold(again.model)


def test_optimizer_state_of_frozen_blocks_stays_dropped() -> None:
    loop = Loop(FREEZE, 8).train(range(5))
    longer = loop.resumed(30).train(range(5, 6))
    trains = {p for p in longer.growth.parameters() if p.requires_grad}
    assert trains.issuperset(longer.optimizer.state)
    assert len(longer.optimizer.state) == len(loop.optimizer.state)


# A user's own plan: no message sends the user to another one


def test_a_given_plan_may_be_passed_rescaled_or_extended_or_not_at_all() -> None:
    given = GrowthPlan(8, 8, (Stage(0, (5, 6, 7)), Stage(3, (2, 5, 6, 7)), Stage(6, tuple(range(8)))))
    settings = {**UNFREEZE, "num_stages": 3}
    loop = Loop(settings, 8, given).train(range(4))
    expected = given.extended(16, at_step=4)
    assert [stage.start for stage in expected.stages] == [0, 3, 10]
    for plan in (given.rescaled(16), expected):
        longer = loop.resumed(16, plan)
        assert longer.growth.plan == expected
        # The same command again.
        assert longer.train([4]).resumed(16, plan).growth.plan == expected
    # A plan of the user's that leaves the past alone is followed to the letter.
    later = GrowthPlan(8, 16, (*given.stages[:2], Stage(15, tuple(range(8)))))
    assert loop.resumed(16, later).growth.plan == later
    with pytest.raises(StateError, match=r"resume with .*the old run's plan"):
        loop.resumed(16)


def test_other_stages_are_refused() -> None:
    given = GrowthPlan(8, 8, (Stage(0, tuple(range(8))), Stage(4, (6, 7))))
    loop = Loop({**FREEZE, "num_stages": 2}, 8, given).train(range(4))
    with pytest.raises(StateError, match="another growth plan .*stages was"):
        loop.resumed(8, GrowthPlan(8, 8, (given.stages[0], Stage(5, (6, 7)))))
    with pytest.raises(StateError, match="another growth plan"):
        loop.resumed(16, GrowthPlan(8, 16, (given.stages[0], Stage(4, (7,)))))
    loop = Loop(FREEZE, 8).train(range(4))
    for changes in ({"order": "interleaved"}, {"min_trainable": 0.5}, {"boundaries": (1, 2, 3)}):
        for steps in (8, 16):
            with pytest.raises(StateError, match="another growth plan .*stages was"):
                loop.resumed(steps, **changes)


def test_a_plan_from_a_run_equals_its_settings() -> None:
    """`growth.json` of a run, followed again, and the other way round."""
    loop = Loop(FREEZE, 8).train(range(4))
    longer = loop.resumed(16, loop.growth.plan.rescaled(16))
    assert longer.starts == [0, 2, 4, 10]
    assert longer.train(range(4, 6)).resumed(16).starts == [0, 2, 4, 10]


def test_a_state_written_before_runs_could_be_extended_goes_on() -> None:
    for name in ("freeze", "search"):
        loop = Loop(CONFIGS[name], 8).train(range(4))
        state = loop.growth.state_dict()
        del state["planned"], state["searched"]
        for steps in (8, 20):
            other = Loop(CONFIGS[name], steps)
            other.growth.load_state_dict(state)
            assert other.growth.plan == loop.growth.plan.extended(steps, 4)


def test_a_damaged_state_is_refused() -> None:
    for key in ("step", "plan", "model", "history", "decisions"):
        loop = Loop(OFF, 4)
        state = loop.growth.state_dict()
        del state[key]
        with pytest.raises(StateError, match=f"lacks \\['{key}'\\]"):
            loop.growth.load_state_dict(state)
