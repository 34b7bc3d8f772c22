"""The committed runs of the growth benchmark: comparable, complete, and summed up as the script says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _in_folder(benchmark_folder: Callable[[str], Path]) -> None:
    benchmark_folder("vit_growth")


@pytest.fixture
def runs(benchmark_folder: Callable[[str], Path]) -> list[dict[str, Any]]:
    from common import Runs

    return Runs(benchmark_folder("vit_growth") / "runs.jsonl").rows


def test_every_run_ends_as_the_whole_model_and_counts_all_its_steps(runs: list[dict[str, Any]]) -> None:
    from run import STEPS

    for run in runs:
        assert sum(stage["steps"] for stage in run["stages"]) == run["steps"]
        assert run["steps"] == STEPS or run["method"] == "full_short"
        assert (run["stages"][-1]["blocks"], run["stages"][-1]["resolution"]) == (12, 24)
        assert run["flops"] == pytest.approx(sum(stage["flops"] * stage["steps"] for stage in run["stages"]), rel=1e-5)


def test_equal_compute_is_equal(runs: list[dict[str, Any]]) -> None:
    flops = {method: {r["flops"] for r in runs if r["method"] == method} for method in ("fixed", "full_short")}
    assert len(flops["fixed"]) == len(flops["full_short"]) == 1
    assert flops["full_short"].pop() == pytest.approx(flops["fixed"].pop(), rel=0.01)


def test_the_cost_of_ordinary_training_goes_through_both_lengths() -> None:
    from accuracy_cost import note_equal_accuracy, ordinary_cost

    whole = {"accuracy": 40.0, "flops": 1.0}
    short = {"accuracy": 30.0, "flops": 4.0}
    assert ordinary_cost(40.0, "flops", whole=whole, short=short) == 1.0
    assert ordinary_cost(30.0, "flops", whole=whole, short=short) == pytest.approx(1 / 4)
    assert ordinary_cost(35.0, "flops", whole=whole, short=short) == pytest.approx(1 / 2)
    between = {"accuracy": 35.0, "flops": 3.0}
    for scale in (1.0, 2.0):  # of all speed-ups, against whatever run
        rows = [{**row, "flops": scale * row["flops"]} for row in (whole, short, between)]
        note_equal_accuracy(rows, ["flops"], whole=rows[0], short=rows[1])
        assert [row["equal_accuracy_flops"] for row in rows] == pytest.approx([1, 1, 3 / 2])
    note_equal_accuracy([between], ["flops"], whole=whole, short=None)
    assert "equal_accuracy_flops" not in between
