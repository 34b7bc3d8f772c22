"""What a pretraining run leaves to look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprog_diffusion.vit.training.report import draw_timeline, print_decision, print_summary
from autoprog_diffusion.vit.training.runlog import RunLog, saving


@pytest.fixture
def log() -> RunLog:
    log = RunLog()
    for step in range(8):
        searching, last = step < 2, step >= 4
        log.add(loss=3 - step / 4, seconds=0.03 if searching else 0.01 + 0.01 * last, cpu_seconds=0.01, memory=2**20,
                stage=int(last), searching=searching, depth=4 if last else 2 + step % 2, resolution=32 if last else 16,
                flops=400 if last else 100)  # fmt: skip
    log.validations.append({"step": 4.0, "accuracy": 0.25, "ema_accuracy": 0.5})
    return log


def test_searches_and_stages_are_told_apart(log: RunLog) -> None:
    rows = log.summaries()
    assert [(row.stage, row.searching, row.steps, row.depth) for row in rows] == [
        (0, True, 2, 2.5), (0, False, 2, 2.5), (1, False, 4, 4.0)]  # fmt: skip
    assert rows[2].step_seconds == pytest.approx(0.02)
    # 8 steps at the last stage's cost, against what was spent, the search included.
    assert saving(rows) == pytest.approx({"time": 0.16 / 0.16, "flops": 3200 / 2000})


def test_the_table_says_what_was_saved(log: RunLog, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(log.summaries(), log.validations[-1], {"training": 3.25})
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert rows[0] == ["1 search", "2", "2.5", "16", "2.7500", "30.0 ms", "150%", "25%", "1 MiB"]
    assert rows[2] == ["2", "4", "4", "32", "1.2500", "20.0 ms", "100%", "100%", "1 MiB"]
    assert "1.00x less" in text
    assert "by FLOPs 1.60x" in " ".join(text.split())
    assert "accuracy 25.0%, of the average 50.0%" in text


@pytest.mark.parametrize(
    "candidates",
    [[{"depth": d, "resolution": 16, "loss": 2.0, "cost": 10.0 * d, "score": 1.5} for d in (2, 4)],
     [{"blocks": list(range(d)), "resolution": 16, "cost": 1.0, "kappa": "inf", "gain": 3.0, "value": -1.0}
      for d in (2, 4)]],
    ids=["one shot", "zero shot"],
)  # fmt: skip
def test_a_decision_is_printed_with_its_choice(candidates: list[dict], capsys: pytest.CaptureFixture[str]) -> None:
    choice = {"depth": 4, "resolution": 16}
    print_decision({"stage": 0, "search": "x", "seconds": 1.0, "choice": choice, "candidates": candidates})
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert ["chosen" in line for line in lines] == [False, True]


def test_a_run_is_drawn_also_without_validations(log: RunLog, tmp_path: Path) -> None:
    for name in ("with", "without"):
        draw_timeline(tmp_path / f"{name}.png", log)
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
        log.validations.clear()
