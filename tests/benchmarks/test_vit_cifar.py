"""The long runs of vision transformers: every method trains, and the table compares them at equal accuracy."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image


@pytest.fixture
def benchmark(benchmark_folder: Callable[[str], Path]) -> Any:
    benchmark_folder("vit_cifar")
    return importlib.import_module("run")


@pytest.fixture
def comparison(benchmark: Any) -> Any:
    return importlib.import_module("comparison")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """1,000 pictures of ten colours."""
    generator = np.random.default_rng(0)
    labels = [index % 10 for index in range(1000)]
    images = []
    for label in labels:
        pixels = generator.integers(0, 100, (32, 32, 3)) + 15 * label
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    Dataset.from_dict({"image": images, "label": labels}).to_parquet(tmp_path / "cifar10_train.parquet")
    return tmp_path


def test_data_that_is_missing_is_described(benchmark: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="cifar10_test.parquet: it holds CIFAR-10's pictures in a column `image`"):
        benchmark.parquet(tmp_path, "test")


def test_every_run_has_a_schedule_of_its_own_length(benchmark: Any, data: Path) -> None:
    (data / "cifar10_test.parquet").touch()
    options = benchmark.Options(data_dir=data, state=data / "state")
    lengths = {}
    for method in benchmark.METHODS:
        lengths[method] = benchmark.arguments(method, 0, options).train.max_train_steps
    assert lengths["full"] == 7812
    assert lengths["full_short"] == round(10 * 50_000 / 128)
    assert {length for method, length in lengths.items() if method != "full_short"} == {lengths["full"]}


def test_the_cost_of_a_run_that_is_stopped_is_where_its_average_was_as_good(comparison: Any) -> None:
    curve = [{"ema_accuracy": accuracy, "flops": flops} for accuracy, flops in ((0.4, 10.0), (0.6, 20.0), (0.7, 40.0))]
    assert comparison.cost_of(50.0, curve, "flops") == pytest.approx(15)
    assert comparison.cost_of(70.0, curve, "flops") == pytest.approx(40)
    assert comparison.cost_of(71.0, curve, "flops") is None


def test_a_run_is_set_against_the_ordinary_runs_of_its_own_seed(benchmark: Any, tmp_path: Path) -> None:
    """The ordinary runs of seed 1 cost twice those of seed 0, and the growing one as well: the ratios stay."""
    runs = benchmark.Runs(tmp_path / "runs.jsonl")
    for seed, methods in enumerate((("full", "full_short", "fixed", "stacking"), ("full", "full_short", "fixed"))):
        for method in methods:
            share = 1.0 if method == "full" else 0.5
            cost = (1 + seed) * share * 100
            stage = {"blocks": 8, "resolution": 32, "steps": cost, "cpu_seconds": 2.0 * cost, "searching": False}
            curve = [{"ema_accuracy": 0.1, "flops": 0.0, "cpu_seconds": 0.0}]
            curve += [{"ema_accuracy": 0.4 + 0.2 * share, "flops": cost, "cpu_seconds": 2 * cost}]
            row = {"method": method, "seed": seed, "steps": cost, "flops": cost, "cpu_seconds": 2 * cost}
            runs.add({**row, "accuracy": curve[-1]["ema_accuracy"], "stages": [stage], "curve": curve})
    (tmp_path / "step_times.json").write_text(json.dumps({"cpu_seconds": {str(benchmark.WHOLE): 2.0}}))
    rows = {row["method"]: row for row in benchmark.table(runs)}
    assert [rows[method]["seeds"] for method in ("full", "fixed", "stacking")] == [2, 2, 1]
    for method in ("fixed", "stacking"):
        assert rows[method]["flops"] == pytest.approx(2)
        assert rows[method]["equal_accuracy_flops"] == pytest.approx(1)
        assert rows[method]["stopped_flops"] == pytest.approx(2 * (0.5 - 0.1) / (0.6 - 0.1))


def test_a_method_that_once_was_better_than_ordinary_training_has_no_mean(comparison: Any) -> None:
    rows = [{"method": "fixed", "stopped_cpu_seconds": value, "stopped_flops": 2.0} for value in (1.5, None)]
    merged = comparison.means(rows)
    assert (merged["stopped_cpu_seconds"], merged["stopped_cpu_seconds_text"]) == (None, "-")
    assert merged["stopped_flops_text"] == "2.00x"
    assert merged["equal_accuracy_flops_text"] == "-"


def test_a_run_is_set_against_the_ordinary_run_of_its_rate(comparison: Any) -> None:
    """`full` was as accurate at half of its cost, `full_lower`, which learns slower here, at two thirds."""
    accuracies = {"full": 0.6, "by_cost": 0.5, "full_lower": 0.55, "by_cost_lower": 0.5}
    stage = {"blocks": 8, "resolution": 32, "steps": 60, "cpu_seconds": 60.0, "searching": False}
    runs = {}
    for method, accuracy in accuracies.items():
        curve = [
            {"ema_accuracy": share, "flops": cost, "cpu_seconds": cost} for share, cost in ((0.4, 0), (accuracy, 60))
        ]
        run = {"method": method, "steps": 60, "flops": 60.0, "cpu_seconds": 60.0, "accuracy": accuracy}
        runs[method] = {**run, "stages": [stage], "curve": curve}
    times = {"8 blocks, 32 pixels, stride 8": 1.0}
    rows = comparison.against_ordinary(runs, times)
    assert rows["by_cost"]["stopped_flops"] == pytest.approx(1 / 2)
    assert rows["by_cost_lower"]["stopped_flops"] == pytest.approx(2 / 3)
    assert rows["by_cost_lower"]["cpu_seconds"] == pytest.approx(1)
    rows = comparison.against_ordinary({method: runs[method] for method in ("full", "by_cost_lower")}, times)
    assert rows["by_cost_lower"]["stopped_flops"] is None


@pytest.mark.slow
def test_every_method_trains_and_is_compared(benchmark: Any, data: Path) -> None:
    folder = data / "results"
    benchmark.main(benchmark.Options(quick=True, data_dir=data, state=data / "state", results=folder))
    common = importlib.import_module("common")
    runs = common.Runs(folder / "runs.jsonl")
    assert [row["method"] for row in runs.rows] == [*benchmark.METHODS]
    for row in runs.rows:
        assert sum(stage["steps"] for stage in row["stages"]) == row["steps"]
        assert (row["stages"][-1]["blocks"], row["stages"][-1]["resolution"]) == (8, 32)
        assert row["parameters"] == runs.rows[0]["parameters"]
    rows = {row["method"]: row for row in common.load(folder / "summary.json")["rows"]}
    assert rows["full_short"]["equal_accuracy_flops"] == pytest.approx(1)
    assert rows["fixed"]["flops"] > 1
    assert rows["retokenization"]["flops"] > 1
    assert (folder / "plot.png").stat().st_size > 1000
    assert not list((data / "state").iterdir())
