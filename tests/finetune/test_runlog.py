from __future__ import annotations

import pytest

from autoprog_diffusion.training.metrics import RunLog, StageSummary, saving


def log_of(*rows: tuple[float, float, int]) -> RunLog:
    log = RunLog()
    for index, (loss, seconds, stage) in enumerate(rows):
        log.add(
            loss=loss, seconds=seconds, stage=stage, resolution=32 * (stage + 1), trainable=0.5 * (stage + 1),
            memory=100 + index,
        )  # fmt: skip
    return log


def summary(steps: int, seconds: float, flops: int | None) -> StageSummary:
    return StageSummary(0, steps, 1, 1.0, 64, seconds, flops, 1, 0.0)


def test_summaries_by_hand() -> None:
    log = log_of(*[(8.0, 9.0, 0)] * 3, (1.0, 2.0, 0), (3.0, 3.0, 0), (5.0, 1.0, 1), (7.0, 2.0, 1), (9.0, 9.0, 1))
    log.flops = {1: 400}
    first, second = log.summaries([2, 4])
    assert first == StageSummary(0, 5, 2, 0.5, 32, 9.0, None, 104, 3.0)  # a quarter of 5 rows is the last one
    assert second == StageSummary(1, 3, 4, 1.0, 64, 2.0, 400, 107, 9.0)


def test_loss_is_the_mean_of_the_last_quarter() -> None:
    log = log_of(*[(float(value), 1.0, 0) for value in range(8)])
    assert log.summaries([1])[0].loss == (6 + 7) / 2


def test_only_stages_that_ran_are_summarised() -> None:
    log = log_of((1.0, 1.0, 0))
    assert [row.stage for row in log.summaries([1, 2, 3])] == [0]
    assert RunLog().summaries([1]) == []


def test_saving_by_hand() -> None:
    rows = [summary(30, 1.0, 100), summary(10, 4.0, 300)]
    assert saving(rows) == {"time": 40 * 4 / (30 + 40), "flops": 40 * 300 / (3000 + 3000)}
    assert saving(rows[1:]) == {"time": 1.0, "flops": 1.0}


def test_saving_leaves_out_flops_that_were_not_counted() -> None:
    assert saving([summary(1, 1.0, None), summary(1, 1.0, 3)]) == {"time": 1.0}


def test_a_reloaded_log_goes_on_where_it_was() -> None:
    log = log_of((1.0, 1.0, 0), (2.0, 1.0, 1))
    log.flops = {0: 5}
    other = log_of((9.0, 9.0, 2))
    other.load_state_dict(log.state_dict())
    assert len(other) == 2
    assert other.summaries([1, 1]) == log.summaries([1, 1])


def test_a_row_needs_every_column() -> None:
    with pytest.raises(KeyError, match="memory"):
        RunLog().add(loss=1.0, seconds=1.0, stage=0, resolution=1, trainable=1.0)
