"""The committed runs of the growth benchmark: comparable, complete, and summed up as the script says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FOLDER = BENCHMARKS / "results" / "vit_growth"


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other from their own folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def runs() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*_[0-9].json"))]


def test_every_run_ends_as_the_whole_model_and_counts_all_its_steps(runs: list[dict[str, Any]]) -> None:
    from vit_growth import STEPS

    for run in runs:
        assert sum(stage["steps"] for stage in run["stages"]) == run["steps"]
        assert run["steps"] == STEPS or run["method"] == "full_short"
        assert (run["stages"][-1]["depth"], run["stages"][-1]["resolution"]) == (12, 24)
        assert run["flops"] == pytest.approx(sum(stage["flops"] * stage["steps"] for stage in run["stages"]))


def test_equal_compute_is_equal(runs: list[dict[str, Any]]) -> None:
    flops = {method: {r["flops"] for r in runs if r["method"] == method} for method in ("fixed", "full_short")}
    assert len(flops["fixed"]) == len(flops["full_short"]) == 1
    assert flops["full_short"].pop() == pytest.approx(flops["fixed"].pop(), rel=0.01)


def test_the_cost_of_ordinary_training_goes_through_both_lengths() -> None:
    from vit_growth import ordinary_cost

    rows = {"full": {"accuracy": 40.0, "flops": 1.0}, "full_short": {"accuracy": 30.0, "flops": 4.0}}
    assert ordinary_cost(40.0, rows, "flops") == 1.0
    assert ordinary_cost(30.0, rows, "flops") == pytest.approx(1 / 4)
    assert ordinary_cost(35.0, rows, "flops") == pytest.approx(1 / 2)


def test_the_summary_is_that_of_the_runs(runs: list[dict[str, Any]]) -> None:
    rows = {row["method"]: row for row in json.loads((FOLDER / "summary.json").read_text())["rows"]}
    assert {run["method"] for run in runs} == set(rows)
    for method, row in rows.items():
        found = [100 * run["final"]["averaged"]["accuracy"] for run in runs if run["method"] == method]
        assert row["seeds"] == len(found)
        assert row["accuracy"] == pytest.approx(sum(found) / len(found))
