"""When a difference is one, how often is evaluated, and when a run stops."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autoprog_diffusion.evaluation.draws import stratified_times
from autoprog_diffusion.evaluation.pace import LEAST_SAMPLES, Pace, choose_pace, cost_between, mean_cost
from autoprog_diffusion.evaluation.record import EvaluationRecord
from autoprog_diffusion.evaluation.result import Difference, Evaluation, difference
from autoprog_diffusion.evaluation.stopping import Outlook, Point, reason_to_stop
from autoprog_diffusion.growth.plan import GrowthPlan, Stage


IMAGES, DRAWS = 12, 4
TIMES = stratified_times(IMAGES, DRAWS, 0)
NOISE = torch.randn(DRAWS, IMAGES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
FREEZING = GrowthPlan(4, 100, (Stage(0, (0, 1, 2, 3)), Stage(50, (2, 3))))
OPENING = GrowthPlan(4, 100, (Stage(0, (3,)), Stage(50, (0, 1, 2, 3))))
PLAIN = GrowthPlan(4, 100, (Stage(0, (0, 1, 2, 3)),))


def evaluation(loss: float, spread: float = 0.01, seed: int = 0) -> Evaluation:
    """One with a mean loss of `loss`; images and draws differ from those of another seed by chance."""
    own = torch.randn(DRAWS, IMAGES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    own = spread * (own - own.mean())
    return Evaluation(loss + NOISE - NOISE.mean() + own, TIMES, 4, seconds=1.0)


def points(losses: Sequence[float], every: int = 10, spread: float = 0.01) -> list[Point]:
    return [Point(every * number, evaluation(loss, spread, number)) for number, loss in enumerate(losses)]


def test_a_difference_has_the_noise_of_its_formula() -> None:
    later, earlier = evaluation(1.0, seed=1), evaluation(1.1, seed=2)
    found = difference(later, earlier)
    gaps: Tensor = later.losses - earlier.losses
    rest = [0.0] * IMAGES
    for image in range(IMAGES):
        for draw in range(DRAWS):
            place = int(TIMES[draw, image] * 4)
            alike = [gaps[d, i] for d in range(DRAWS) for i in range(IMAGES) if int(TIMES[d, i] * 4) == place]
            rest[image] += float(gaps[draw, image] - sum(alike) / len(alike)) / DRAWS
    mean = sum(rest) / IMAGES
    noise = math.sqrt(sum((value - mean) ** 2 for value in rest) / (IMAGES * (IMAGES - 1)))
    assert found.value == pytest.approx(-0.1)
    assert found.noise == pytest.approx(noise)
    # What both have in common is far larger.
    assert found.noise < 0.05 * later.noise


def test_a_difference_is_one_above_two_standard_errors() -> None:
    assert Difference(-0.21, 0.1).is_lower
    assert not Difference(-0.19, 0.1).is_lower
    assert Difference(0.21, 0.1).is_higher
    assert not Difference(0.21, 0.1).is_lower
    assert not Difference(-1.0, math.inf).is_clear
    assert not Difference(math.nan, math.nan).is_clear


def test_chance_is_rarely_called_a_difference() -> None:
    start = evaluation(1.0, seed=0)
    calls = [difference(evaluation(1.0, seed=seed), start) for seed in range(1, 201)]
    shifted = torch.stack([torch.randn(DRAWS, IMAGES) for _ in range(200)]).double() * 0.01
    called = 0
    for own in shifted:
        moved = Evaluation(start.losses + own, TIMES, 4)
        called += difference(moved, start).is_clear
    assert not any(call.is_clear for call in calls)  # their means are equal
    assert called < 200 * 0.15


def test_a_run_stops_once_the_loss_has_stood_still() -> None:
    falling = [1.0, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7]
    outlook = Outlook(PLAIN)
    reasons = [reason_to_stop(points(falling[:count]), 3, outlook) for count in range(1, 8)]
    assert reasons[:-1] == [None] * 6
    assert reasons[-1] == "the held-out loss did not fall for 3 evaluations"


def test_small_steps_downwards_add_up() -> None:
    slow = [1.0 - 0.001 * step for step in range(30)]
    assert reason_to_stop(points(slow, every=3), 12, Outlook(PLAIN)) is None
    assert reason_to_stop(points([1.0] * 30, every=3), 12, Outlook(PLAIN)) is not None


def test_a_stage_is_not_cut_off_before_it_can_show() -> None:
    still = [1.0] * 9  # the second stage has evaluations at 60, 70 and 80
    assert reason_to_stop(points(still), 3, Outlook(FREEZING)) is None
    assert reason_to_stop(points([1.0] * 10), 3, Outlook(FREEZING)) is not None


def test_nothing_stops_before_blocks_that_are_to_open() -> None:
    assert reason_to_stop(points([1.0] * 6), 2, Outlook(OPENING)) is None
    assert reason_to_stop(points([1.0] * 6), 2, Outlook(PLAIN)) is not None
    sharper = GrowthPlan(4, 100, (Stage(0, (3,), 0.5), Stage(50, (3,))))
    assert reason_to_stop(points([1.0] * 6), 2, Outlook(sharper)) is None


def test_under_a_falling_rate_only_a_rise_stops() -> None:
    decays = Outlook(PLAIN, decays=True)
    assert reason_to_stop(points([1.0, 0.8, 0.8, 0.8, 0.8, 0.8]), 3, decays) is None
    assert reason_to_stop(points([1.0, 0.8, 0.9, 0.9, 0.8, 0.9]), 3, decays) is None
    reason = reason_to_stop(points([1.0, 0.8, 0.9, 0.95, 1.0]), 3, decays)
    assert reason == "the held-out loss rose for 3 evaluations"


def test_the_warm_up_does_not_count() -> None:
    assert reason_to_stop(points([1.0] * 5), 3, Outlook(PLAIN, warmup=30)) is None
    assert reason_to_stop(points([1.0] * 5), 3, Outlook(PLAIN, warmup=0)) is not None


def test_the_cost_of_a_plan_is_that_of_its_stages() -> None:
    assert mean_cost(PLAIN) == 3
    assert mean_cost(FREEZING) == pytest.approx(2.5)
    assert cost_between(FREEZING, 40, 60) == pytest.approx(10 * 3 + 10 * 2)
    assert mean_cost(GrowthPlan(4, 100, (Stage(0, (0, 1, 2, 3), 0.5),))) == pytest.approx(0.75)


@pytest.mark.parametrize(("steps", "batch"), [(8, 4), (640, 16), (10_000, 4), (240_000, 32)])
def test_evaluations_take_their_share_and_no_more(steps: int, batch: int) -> None:
    for images in (2, 16, 128):
        pace = choose_pace(images=images, steps=steps, batch=batch, cost=2.0, share=0.02)
        times = [step for step in range(steps + 1) if pace.due(step, steps)]
        assert steps in times
        assert pace.images <= images
        assert 2 <= pace.draws <= 4
        assert len(times) <= 50
        budget = 0.02 * steps * batch * 2
        if budget >= LEAST_SAMPLES:
            assert len(times) * pace.images * pace.draws <= 1.01 * budget
        else:
            assert times == [steps]


def test_an_interval_that_is_given_is_kept() -> None:
    pace = choose_pace(images=20, steps=100, batch=4, cost=3.0, share=0.02, every=30)
    assert [step for step in range(101) if pace.due(step, 100)] == [0, 30, 60, 90, 100]
    assert Pace(**pace.to_dict()) == pace


def test_the_record_is_what_programs_read(tmp_path: Path) -> None:
    record = EvaluationRecord(points([1.0, 0.8, 0.9]))
    record.write(tmp_path)
    values = json.loads((tmp_path / "held_out.json").read_text())
    assert list(values) == ["evaluations", "ranges", "best", "stopped", "widths", "images", "draws"]
    assert [list(row) for row in values["evaluations"]] == [["step", "loss", "noise", "by_range", "seconds"]] * 3
    assert [row["step"] for row in values["evaluations"]] == [0, 10, 20]
    assert values["best"] == {"step": 10, "loss": pytest.approx(0.8)}
    assert values["stopped"] is None
    assert values["ranges"] == [[0.0, 0.25], [0.25, 0.5], [0.5, 0.75], [0.75, 1.0]]
    assert (values["images"], values["draws"]) == (IMAGES, DRAWS)
    expected = difference(record.points[2].evaluation, record.points[1].evaluation).noise
    assert values["evaluations"][2]["noise"] == expected


def test_a_record_comes_back_from_a_checkpoint_and_knows_no_untrained_best(tmp_path: Path) -> None:
    record = EvaluationRecord(points([0.5, 0.8, 0.9]), pace={"every": 3})
    torch.save(record.state_dict(), tmp_path / "state.pkl")
    other = EvaluationRecord()
    other.load_state_dict(torch.load(tmp_path / "state.pkl", weights_only=True))
    assert other.to_dict() == record.to_dict()
    assert other.pace == record.pace
    assert other.best is not None
    assert other.best.step == 10
    empty = EvaluationRecord().to_dict()
    assert (empty["evaluations"], empty["best"], empty["images"]) == ([], None, 0)
