"""The GPU's measurements on the CPU with tiny models: the same code, row by row."""

from __future__ import annotations

import importlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch


pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(autouse=True)
def run(benchmark_folder: Callable[[str], Path]) -> Any:
    benchmark_folder("gpu")
    return importlib.import_module("run")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def test_stages_are_measured_once_and_what_has_a_budget_takes_that_of_the_full_run(run: Any, tmp_path: Path) -> None:
    ways = ["full", "late, auto", "LoRA grown"]
    flags = ["--dry_run", "--results", str(tmp_path), "--part", "steps", "--models", "dit", "--ways", *ways]
    run.main(flags)
    full, late, lora = rows_of(tmp_path)
    assert [row["way"] for row in (full, late, lora)] == ways
    assert full["stages"][0]["blocks"] == 6
    assert [stage["blocks"] for stage in late["stages"]] == sorted({s["blocks"] for s in late["stages"]}, reverse=True)
    assert sum(late["shares"]) == pytest.approx(1)
    steps = [stage["step_s"] for stage in late["stages"]]
    assert late["step_s"] == pytest.approx(sum(s * t for s, t in zip(late["shares"], steps)), rel=1e-4)
    held = full["held"]
    fixed = held["weights"] + held["gradients"] + held["optimizer"]
    assert late["budget_gb"] == pytest.approx((1.01 * fixed + held["activations"] / 2) / 1e9, rel=1e-4)
    assert any(stage["recomputed"] for stage in late["stages"])
    assert "no PEFT adapters" in lora["refused"]
    table = json.loads((tmp_path / "summary.json").read_text())
    assert [row["way"] for row in table["steps"]] == ways[:2]
    assert table["steps"][0]["faster"] == 1
    assert [row["way"] for row in table["refused"]] == ways[2:]

    run.main(flags)
    assert len(rows_of(tmp_path)) == 3
    run.main([*flags, "--again"])
    assert [row["way"] for row in rows_of(tmp_path)] == ways


def test_overhead_search_and_orders_run_on_tiny_models(run: Any, tmp_path: Path) -> None:
    run.main(["--dry_run", "--results", str(tmp_path), "--part", "overhead", "search", "orders"])
    overhead, search, orders = rows_of(tmp_path)
    assert [row["growth"] for row in overhead["rows"]] == ["no stage embedding", "stage embedding"]
    assert search["candidates"] == 10
    assert [row["candidate"] for row in orders["rows"]][:2] == ["full", "interleaved 0.25"]
    assert orders["rows"][0]["step_share"] == orders["rows"][0]["flops_share"] == 1


def test_what_the_time_is_over_for_is_left(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.main(["--dry_run", "--results", str(tmp_path), "--minutes", "0", "--part", "search"])
    assert "1 rows are left: start it again" in capsys.readouterr().out
    run.main(["--dry_run", "--results", str(tmp_path), "--list", "--part", "search", "steps", "--models", "dit"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "left    search, dit"
    assert all(line.startswith("left    ") for line in lines)


def test_models_have_published_sizes_and_whole_pictures() -> None:
    loads = importlib.import_module("loads").LOADS
    counts = {}
    with torch.device("meta"):
        for name, load in loads.items():
            model = replace(load.published, config={**load.published.config, **load.cut}).build()
            counts[name] = sum(parameter.numel() for parameter in model.parameters()) / 1e9
            inputs = load.published.inputs(model.config)
            if name == "flux_2b":
                assert inputs["hidden_states"].shape[1] == 4096
    assert counts["sd15"] == pytest.approx(0.86, abs=0.01)
    assert counts["sdxl"] == pytest.approx(2.57, abs=0.01)
    assert counts["sd3"] == pytest.approx(2.03, abs=0.01)
    assert 1 < counts["flux_2b"] < 2.5
    assert counts["dit"] == pytest.approx(0.75, abs=0.01)


def test_steps_are_timed_one_by_one() -> None:
    device = importlib.import_module("device")
    done: list[int] = []
    found = device.times(torch.device("cpu"), lambda: done.append(1), 3)
    assert len(found) == len(done) == 3
    assert min(found) >= 0
    assert set(device.describe(torch.device("cpu"))) >= {"float32_matmul_precision", "autocast", "memory_gb"}


@without_gpu
def test_a_machine_without_a_gpu_is_told_of_the_dry_run(run: Any, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no CUDA device.*--dry_run"):
        run.main(["--results", str(tmp_path)])


@pytest.mark.slow
def test_a_row_of_a_process_of_its_own_comes_back(run: Any, tmp_path: Path) -> None:
    key = {"part": "search", "model": "dit", "way": ""}
    assert run.in_own_process(key, tmp_path, 600, dry=True)["candidates"] == 10
    with pytest.raises(subprocess.TimeoutExpired):
        run.in_own_process(key, tmp_path, 0.1, dry=True)
    wrong = run.in_own_process({"part": "search", "model": "unknown", "way": ""}, tmp_path, 600, dry=True)
    assert wrong["refused"] == "failed: KeyError: 'unknown'"


@pytest.mark.slow
# Under autocast the weights of Flux.2's norms stay float32.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
def test_the_whole_dry_run(run: Any, tmp_path: Path) -> None:
    run.main(["--dry_run", "--results", str(tmp_path), "--minutes", "60"])
    rows = rows_of(tmp_path)
    assert {row["model"] for row in rows if "refused" in row} <= {"dit"}
    assert {row["part"] for row in rows} >= {"steps", "overhead", "search", "orders", "quality"}
