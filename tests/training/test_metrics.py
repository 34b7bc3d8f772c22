"""Metrics of a run: what is summed up of every stage, and what a run saved."""

from __future__ import annotations

import pytest

from autoprog_diffusion.stage_summary import StageSummary
from autoprog_diffusion.training.metrics import Metrics, full_stage, saving

from .rows import metrics_of


def summary(steps: int, seconds: float, flops: float, *, searching: bool = False) -> StageSummary:
    return StageSummary(
        stage=0, searching=searching, steps=steps, blocks=1, trainable=1.0, resolution=64, step_seconds=seconds,
        seconds=seconds * steps, cpu_seconds=0.0, flops=flops, memory=1, loss=0.0,
    )  # fmt: skip


def test_summaries_by_hand() -> None:
    first = [(8.0, 9.0), (8.0, 9.0), (8.0, 9.0), (1.0, 2.0), (3.0, 3.0)]
    last = [(5.0, 1.0), (7.0, 2.0), (9.0, 9.0)]
    rows = [{"loss": loss, "seconds": time, "memory": 100 + step} for step, (loss, time) in enumerate(first)]
    rows += [{"loss": loss, "seconds": time, "stage": 1, "blocks": 4, "flops": 400} for loss, time in last]
    one, two = metrics_of(*rows).summaries()
    assert (one.stage, one.steps, one.blocks, one.step_seconds, one.seconds, one.memory) == (0, 5, 2, 6.0, 32.0, 104)
    assert one.loss == 3.0  # a quarter of 5 rows is the last one
    assert (two.stage, two.steps, two.blocks, two.step_seconds, two.flops, two.loss) == (1, 3, 4, 5.5, 400, 9.0)


def test_loss_is_the_mean_of_the_last_quarter() -> None:
    metrics = metrics_of(*({"loss": value} for value in range(8)))
    assert metrics.summaries()[0].loss == (6 + 7) / 2


def test_only_stages_that_ran_are_summarised() -> None:
    assert [row.stage for row in metrics_of({"stage": 0}, {"stage": 2}).summaries()] == [0, 2]
    assert Metrics().summaries() == []


def test_searches_and_stages_are_told_apart() -> None:
    """Two steps of a search in stage 0, two of the network it chose, and stage 1."""
    rows = [{"searching": True, "blocks": blocks, "seconds": 0.03} for blocks in (2, 3)]
    rows += [{"blocks": blocks, "seconds": 0.01} for blocks in (2, 3)]
    rows += [{"stage": 1, "blocks": 4, "flops": 400, "seconds": 0.02}] * 4
    found = metrics_of(*rows).summaries()
    assert [(row.stage, row.searching, row.steps, row.blocks) for row in found] == [
        (0, True, 2, 2.5), (0, False, 2, 2.5), (1, False, 4, 4.0)]  # fmt: skip
    assert full_stage(found, 4) is found[2]
    # 8 steps at the last stage's cost, against what was spent, the search included.
    assert saving(found, 4) == pytest.approx({"time": 0.16 / 0.16, "flops": 3200 / 2000})


def test_saving_by_hand() -> None:
    rows = [summary(30, 1.0, 100), summary(10, 4.0, 300)]
    assert saving(rows, 1) == {"time": 40 * 4 / (30 + 40), "flops": 40 * 300 / (3000 + 3000)}
    assert saving(rows[1:], 1) == {"time": 1.0, "flops": 1.0}


def test_a_run_that_never_trains_all_blocks_is_compared_with_nothing() -> None:
    rows = [summary(30, 1.0, 100), summary(10, 4.0, 300)]
    assert full_stage(rows, 2) is None
    assert saving(rows, 2) == {"time": None, "flops": None}


def test_a_stage_of_one_step_has_no_time() -> None:
    """Its only step warms up: it builds kernels, and allocates the optimizer's state."""
    rows = [{"seconds": 9.0}, *[{"stage": 1, "seconds": seconds} for seconds in (9.0, 2.0)]]
    one, two = metrics_of(*rows).summaries()
    assert (one.step_seconds, two.step_seconds) == (None, 2.0)
    assert saving([one, two], 2) == {"time": 2.0 * 3 / 20, "flops": 1.0}
    assert saving([one], 2) == {"time": None, "flops": 1.0}


def test_reloaded_metrics_go_on_where_they_were() -> None:
    metrics = metrics_of({"loss": 1.0}, {"loss": 2.0, "stage": 1})
    metrics.flops = {"stage 1": 5}
    metrics.validations.append({"step": 2.0})
    other = metrics_of({"loss": 9.0, "stage": 2})
    other.load_state_dict(metrics.state_dict())
    assert len(other) == 2
    assert other.summaries() == metrics.summaries()
    assert (other.flops, other.validations) == ({"stage 1": 5}, [{"step": 2.0}])


def test_a_row_needs_every_column() -> None:
    with pytest.raises(KeyError, match="memory"):
        Metrics().add(
            loss=1.0, seconds=1.0, cpu_seconds=1.0, stage=0, searching=False, blocks=1, trainable=1.0, resolution=1,
            flops=1,
        )  # fmt: skip
