"""The fixed schedule, the paper's numbers, and plans on disk."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from autoprog_diffusion import GrowthConfig, GrowthError, GrowthPlan, Stage
from autoprog_diffusion.growth import PlanError, fixed_plan, select_blocks
from autoprog_diffusion.growth.plan import check_plan_fits


pytestmark = pytest.mark.smoke


def plan_of(*blocks: tuple[int, ...], num_blocks: int = 4, steps: int = 100) -> GrowthPlan:
    stages = tuple(Stage(steps * k // len(blocks), chosen) for k, chosen in enumerate(blocks))
    return GrowthPlan(num_blocks, steps, stages)


def test_the_papers_numbers() -> None:
    plan = fixed_plan(GrowthConfig(order="interleaved", direction="unfreeze"), 28, 400)
    assert [len(stage.blocks) for stage in plan.stages] == [7, 14, 21, 28]
    for level, stage in enumerate(plan.stages, start=1):
        assert stage.blocks == tuple(index for index in range(28) if index % 4 < level)
    assert [stage.start for stage in plan.stages] == [0, 100, 200, 300]


def literal_interleaved(num_blocks: int, levels: int, level: int) -> tuple[int, ...]:
    """The rule of the paper, word for word: block i trains at level l of L if i mod L < l."""
    chosen = []
    for index in range(num_blocks):
        if index % levels < level:
            chosen.append(index)
    return tuple(chosen)


def test_interleaved_equals_its_literal_twin() -> None:
    for levels in range(1, 13):
        for num_blocks in range(1, 41):
            for level in range(1, levels + 1):
                ours = select_blocks("interleaved", num_blocks, level / levels, 1 / levels)
                assert ours == literal_interleaved(num_blocks, levels, level)


@pytest.mark.parametrize("order", ["suffix", "prefix"])
def test_ends_hold_the_rounded_up_fraction(order: Any) -> None:
    for num_blocks in range(1, 41):
        for part in range(1, 9):
            count = math.ceil(Fraction(part, 8) * num_blocks)
            ours = select_blocks(order, num_blocks, part / 8)
            whole = tuple(range(num_blocks))
            assert ours == (whole[:count] if order == "prefix" else whole[num_blocks - count :])


def test_a_larger_fraction_holds_a_smaller_ones_blocks() -> None:
    for order in ("interleaved", "suffix", "prefix"):
        for low in (0.05, 0.2, 0.25, 0.3, 1 / 3, 0.4, 0.5, 0.7, 1.0):
            for num_blocks in (1, 5, 12, 28):
                chosen = [set(select_blocks(order, num_blocks, part / 20, low)) for part in range(1, 21)]
                assert all(early <= late for early, late in zip(chosen, chosen[1:]))
                assert all(chosen)
                assert chosen[-1] == set(range(num_blocks))


@pytest.mark.parametrize("order", ["interleaved", "suffix", "prefix"])
def test_the_fixed_plan_ends_with_every_block(order: Any) -> None:
    for count in (1, 2, 3, 5):
        plan = fixed_plan(GrowthConfig(num_stages=count, order=order, direction="unfreeze"), 12, 50)
        assert len(plan.stages) == count
        assert plan.stages[-1].blocks == tuple(range(12))


@pytest.mark.parametrize("order", ["interleaved", "suffix", "prefix"])
def test_freezing_is_the_same_schedule_backwards(order: Any) -> None:
    opens = fixed_plan(GrowthConfig(order=order, direction="unfreeze"), 28, 400)
    closes = fixed_plan(GrowthConfig(order=order, direction="freeze"), 28, 400)
    assert [stage.blocks for stage in closes.stages] == [stage.blocks for stage in reversed(opens.stages)]
    assert [len(stage.blocks) for stage in closes.stages] == [28, 21, 14, 7]
    assert [stage.start for stage in closes.stages] == [0, 100, 200, 300]
    assert closes.freezes
    assert not opens.freezes
    assert GrowthPlan.from_dict(closes.to_dict()) == closes


A_PLAN_KNOWS = [
    ([(0,)], False, False),
    ([(0,), (0,)], False, False),
    ([(0,), (0, 1)], False, True),
    ([(0, 1), (1,)], True, False),
    ([(0, 1), (1,), (0, 1)], True, True),
    ([(0,), (0, 1), (1,)], True, True),
    ([(0, 2), (0, 1)], True, True),
]


def test_a_plan_knows_in_which_directions_it_goes() -> None:
    for blocks, freezes, opens in A_PLAN_KNOWS:
        plan = plan_of(*blocks)
        assert (plan.freezes, plan.opens, plan.monotone) == (freezes, opens, not (freezes and opens))
        assert GrowthPlan.from_dict(plan.to_dict()) == plan


def test_a_frozen_stage_may_train_at_a_larger_resolution() -> None:
    config = GrowthConfig(num_stages=2, min_trainable=0.5, direction="freeze", order="suffix", resolutions=(0.5, 1.0))
    assert [(s.blocks, s.resolution) for s in fixed_plan(config, 4, 10).stages] == [((0, 1, 2, 3), 0.5), ((2, 3), 1.0)]


def test_boundaries_are_steps_or_fractions() -> None:
    plan = fixed_plan(GrowthConfig(num_stages=3, boundaries=(5, 80)), 8, 100)
    assert [stage.start for stage in plan.stages] == [0, 5, 80]
    plan = fixed_plan(GrowthConfig(num_stages=3, boundaries=(0.25, 0.5)), 8, 100)
    assert [stage.start for stage in plan.stages] == [0, 25, 50]


def test_fractions_of_a_hundred_steps_are_percents() -> None:
    for percent in range(1, 100):
        plan = fixed_plan(GrowthConfig(num_stages=2, boundaries=(percent / 100,)), 8, 100)
        assert plan.stages[1].start == percent


def test_resolutions_reach_the_stages() -> None:
    plan = fixed_plan(GrowthConfig(num_stages=2, resolutions=(32, 64)), 8, 10)
    assert [stage.resolution for stage in plan.stages] == [32, 64]
    assert [stage.resolution for stage in fixed_plan(GrowthConfig(num_stages=2), 8, 10).stages] == [1.0, 1.0]


def test_stage_at_counts_boundaries_from_zero() -> None:
    plan = plan_of((0,), (0, 1), (0, 1, 2, 3), steps=9)
    assert [plan.stage_at(step) for step in range(10)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]


def test_a_run_without_a_step_is_refused() -> None:
    with pytest.raises(PlanError, match="num_training_steps=0 .*at least one step"):
        fixed_plan(GrowthConfig(), 28, 0)


def test_the_same_blocks_may_train_at_a_larger_resolution() -> None:
    config = GrowthConfig(num_stages=2, min_trainable=1.0, resolutions=(0.5, 1.0))
    assert [stage.blocks for stage in fixed_plan(config, 2, 10).stages] == [(0, 1), (0, 1)]


A_BAD_PLAN = [
    ((), "at least one stage"),
    ((Stage(1, (0,)),), r"\[1\] must begin at 0"),
    ((Stage(0, (0,)), Stage(0, (0, 1))), r"\[0, 0\].*increase"),
    ((Stage(0, (0,)), Stage(9, (0, 1)), Stage(5, (0, 1, 2))), r"\[0, 9, 5\]"),
    ((Stage(0, (0,)), Stage(10, (0, 1))), "starts at step 10, but the run has 10 steps"),
    ((Stage(0, (1, 0)),), r"stage 0 .*in order.*\(1, 0\)"),
    ((Stage(0, (1, 1)),), r"once each.*\(1, 1\)"),
    ((Stage(0, (0, 4)),), r"stage 0 trains blocks \(0, 4\).*blocks 0 to 3"),
    ((Stage(0, (-1, 0)),), r"\(-1, 0\)"),
    ((Stage(0, (0,), 64), Stage(5, (0, 1), 32)), r"\(64, 32\) decrease"),
    ((Stage(0, (0,), 0.5), Stage(5, (0, 1), 32)), "mix fractions"),
]


def test_a_bad_plan_is_refused() -> None:
    for stages, named in A_BAD_PLAN:
        with pytest.raises(PlanError, match=named):
            GrowthPlan(4, 10, stages)


def test_round_trip_through_a_file_and_through_a_runs_growth_json(tmp_path: Path) -> None:
    config = GrowthConfig(num_stages=3, resolutions=(0.5, 0.75, 1.0))
    plan = fixed_plan(config, 10, 90)
    plan.save(tmp_path / "plan.json")
    assert GrowthPlan.load(tmp_path / "plan.json") == plan
    assert len((tmp_path / "plan.json").read_text().splitlines()) == 10  # one stage a line, to be edited
    run = {"config": config.to_dict(), "plan": plan.to_dict(), "history": []}
    (tmp_path / "growth.json").write_text(json.dumps(run))
    assert GrowthPlan.load(tmp_path / "growth.json") == plan


def test_strides_survive_a_file_and_another_length_and_old_plans_have_none(tmp_path: Path) -> None:
    stages = (Stage(0, (0,), 1.0, 16), Stage(4, (0, 1), 1.0, 8), Stage(6, (0, 1)))
    plan = GrowthPlan(2, 10, stages)
    plan.save(tmp_path / "plan.json")
    assert GrowthPlan.load(tmp_path / "plan.json") == plan
    assert [stage.stride for stage in plan.rescaled(100).stages] == [16, 8, None]
    assert "stride" not in plan.to_dict()["stages"][2]  # so that states written before strides still compare equal
    with pytest.raises(PlanError, match=r"strides \[16, 8, None\].*autoprog_diffusion.vit"):
        check_plan_fits(plan, ["a", "b"], 10, None)


@pytest.mark.parametrize("strides", [(8, 16), (None, 4), (None, None, 4)], ids=str)
def test_strides_that_rise_are_refused(strides: tuple[int | None, ...]) -> None:
    with pytest.raises(PlanError, match=r"strides .* rise"):
        GrowthPlan(1, 10, tuple(Stage(index, (0,), 1.0, stride) for index, stride in enumerate(strides)))


def test_a_stride_that_is_no_number_of_pixels_is_refused() -> None:
    for stride in (0, -4, 2.0, True, "4"):
        with pytest.raises(PlanError, match="stride 0|stride -4|2.0|True|'4'"):
            Stage(0, (0,), 1.0, stride)


def test_a_stage_without_resolution_trains_at_the_datas_size() -> None:
    values = plan_of((0,), (0, 1)).to_dict()
    for stage in values["stages"]:
        del stage["resolution"]
    assert [stage.resolution for stage in GrowthPlan.from_dict(values).stages] == [1.0, 1.0]


def broken(**changes: Any) -> dict[str, Any]:
    values = {**plan_of((0,), (0, 1)).to_dict(), **changes}
    return {key: value for key, value in values.items() if value is not None}


VALUES = [
    (broken(plan_version=None), "plan_version None"),
    (broken(plan_version=2), "plan_version 2"),
    (broken(stages=None), "stages"),
    (broken(num_blocks=None), "num_blocks"),
    (broken(stages=[{"start": 0}]), "blocks"),
    (broken(stages=7), "not a growth plan"),
    (broken(num_blocks="many"), "many"),
    (broken(stages=[{"start": 0, "blocks": [0], "resolution": 1.5}]), "1.5"),
    (broken(stages=[{"start": 0, "blocks": [0]}, {"start": 2.5, "blocks": [0, 1]}]), "2.5"),
]


def test_values_that_are_no_plan_are_refused() -> None:
    for values, named in VALUES:
        with pytest.raises(PlanError, match=named):
            GrowthPlan.from_dict(values)


def test_files_that_are_no_plan_are_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    for text in ("{", "{}", "[]", "null", "7", '{"plan": 3}'):
        tmp_path = tmp_path_factory.mktemp("case")
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(PlanError):
            GrowthPlan.load(tmp_path / "plan.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="nowhere.json"):
        GrowthPlan.load(tmp_path / "nowhere.json")


def test_rescaled_moves_the_starts_in_proportion() -> None:
    plan = plan_of((0,), (0, 1), (0, 1, 2, 3), steps=90)
    assert [stage.start for stage in plan.rescaled(9).stages] == [0, 3, 6]
    assert plan.rescaled(900).rescaled(90) == plan
    assert plan.rescaled(90) == plan
    with pytest.raises(PlanError, match=r"\[0, 0, 1\]"):
        plan.rescaled(2)


def test_rescaled_starts_are_exact() -> None:
    for start, steps, length in ((11, 22, 30), (13, 26, 30), (11, 33, 45), (22, 33, 45), (10, 40, 60)):
        plan = GrowthPlan(2, steps, (Stage(0, (0,)), Stage(start, (0, 1))))
        assert plan.rescaled(length).stages[1].start == start * length // steps


def test_plans_raise_errors_of_the_library() -> None:
    assert issubclass(PlanError, GrowthError)
