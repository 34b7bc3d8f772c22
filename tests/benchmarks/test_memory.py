"""The memory benchmark: the tracker against numbers by hand and against real tensors, sizes of models, results."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ..settings import BY_ID


ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks" / "memory"
FLOAT = 4


@pytest.fixture(autouse=True)
def _in_folder(benchmark_folder: Callable[[str], Path]) -> None:
    benchmark_folder("memory")


def two_layers() -> tuple[nn.Module, torch.Tensor]:
    """4 -> 8 -> 2 numbers, of a batch of 3."""
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
    return model, torch.randn(3, 4)


def test_a_forward_pass_holds_what_is_saved_by_hand() -> None:
    from autoprog_diffusion.planner.tracker import MemoryTracker

    with MemoryTracker() as tracker:
        model, inputs = two_layers()
        tracker.label("weights", model.parameters())
        tracker.label("activations", [inputs])
        tracker.begin()
        with tracker.during("activations"):
            output = model(inputs)
        now = tracker.now("cpu")
        peak = tracker.peak("cpu")
    weights = FLOAT * (4 * 8 + 8 * 2)
    # The inputs, what the ReLU gives, and the output; what goes into the ReLU is not saved.
    saved = FLOAT * (3 * 4 + 3 * 8 + 3 * 2)
    assert now == {"weights": weights, "activations": saved, "copies": 0, "gradients": 0, "optimizer": 0, "other": 0}
    # The most while the ReLU runs: inputs, and its own input and output.
    assert peak.split["activations"] == FLOAT * (3 * 4 + 3 * 8 + 3 * 8)
    assert peak.total == weights + peak.split["activations"]
    assert output.shape == (3, 2)


def test_a_step_holds_gradients_state_and_what_adam_computes_by_hand() -> None:
    from autoprog_diffusion.planner.tracker import MemoryTracker

    with MemoryTracker() as tracker:
        model, inputs = two_layers()
        optimizer = torch.optim.AdamW(model.parameters())
        tracker.label("weights", model.parameters())
        tracker.label("activations", [inputs])
        for _ in range(2):
            tracker.begin()
            model(inputs).square().mean().backward()
            tracker.label("gradients", [parameter.grad for parameter in model.parameters()])
            optimizer.step()
            tracker.label("optimizer", [value for state in optimizer.state.values() for value in state.values()])
            optimizer.zero_grad()
        peak = tracker.peak("cpu")
        now = tracker.now("cpu")
    first = FLOAT * 4 * 8
    weights = first + FLOAT * 8 * 2
    state = 2 * weights + 2 * FLOAT  # two moments of every weight, and two counts of steps
    # Of the first layer: the root of the second moment, and the same divided by a number.
    assert peak.split == {
        "weights": weights,
        "copies": 0,
        "gradients": weights,
        "optimizer": state,
        "activations": FLOAT * 3 * 4,
        "other": 2 * first,
    }
    assert peak.total == sum(peak.split.values())
    assert now == {**dict.fromkeys(now, 0), "weights": weights, "optimizer": state, "activations": FLOAT * 3 * 4}


def test_autocast_copies_of_weights_are_counted_by_hand() -> None:
    from autoprog_diffusion.planner.tracker import MemoryTracker

    with MemoryTracker() as tracker:
        model, inputs = two_layers()
        tracker.label("weights", model.parameters())
        tracker.label("activations", [inputs])
        with tracker.during("activations"), torch.autocast("cpu", torch.bfloat16):
            output = model(inputs)
        now = tracker.now("cpu")
    half = 2
    # Of the second layer: nothing before the first one needs a gradient, so its copy is not saved.
    assert now["copies"] == half * 8 * 2
    assert now["activations"] == FLOAT * 3 * 4 + half * (3 * 4 + 3 * 8 + 3 * 2)
    assert output.dtype == torch.bfloat16


def test_parts_of_a_tensor_made_of_others_are_what_is_counted() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    from autoprog_diffusion.planner.tracker import MemoryTracker

    with MemoryTracker() as tracker:
        pair = TwoTensor(torch.zeros(8), torch.zeros(8))
        tracker.label("weights", [pair])
        tracker.begin()
        doubled = pair + pair
        assert tracker.now("cpu") == {**dict.fromkeys(tracker.now("cpu"), 0), "weights": 64, "other": 64}
        del doubled
        assert tracker.peak("cpu").total == 128
        assert tracker.now("cpu")["other"] == 0


@pytest.mark.parametrize(
    "id", ["sd", "flux", *(pytest.param(id, marks=pytest.mark.slow) for id in ("dit", "sd3", "z_image", "qwen_image"))]
)
def test_fake_tensors_hold_what_real_ones_hold(id: str) -> None:
    from autoprog_diffusion.planner.device import NoValues
    from autoprog_diffusion.planner.settings import Plan
    from autoprog_diffusion.planner.step import Run, stages
    from autoprog_diffusion.planner.tracker import MemoryTracker

    def measure() -> list[Any]:
        row = BY_ID[id]
        plan = Plan("", {"num_stages": 2}, autocast=False)
        with MemoryTracker() as tracker:
            run = Run(plan, row.build, lambda _: row.inputs(0, 1), torch.device("cpu"))
            return list(stages(run, tracker))

    real = measure()
    with NoValues():
        fake = measure()
    assert real == fake
    assert all(stage.peak == sum(stage.split.values()) for stage in real)


def test_the_models_have_their_published_sizes() -> None:
    from published import MODELS, SIZES

    assert list(SIZES) == list(MODELS)
    for name, published in MODELS.items():
        with torch.device("meta"):
            model = published.build()
        assert sum(parameter.numel() for parameter in model.parameters()) == SIZES[name]


def test_the_results_add_up() -> None:
    from common import load, rounded
    from plans import PLANS
    from published import MODELS
    from report import flat, measured, peaks, targets

    results = load(FOLDER / "results.json")
    rows = measured(results["rows"])
    assert {row["model"] for row in rows} <= set(MODELS)
    assert all(row["settings"] == json.loads(json.dumps(PLANS[row["plan"]].to_dict())) for row in results["rows"])
    assert results["table"] == rounded([flat(row) for row in rows])
    assert results["peaks"] == peaks(results["rows"])
    assert results["targets"] == rounded(targets(results["rows"]))
    for row in rows:
        assert row["peak"] == sum(row["split"].values()) == max(stage["peak"] for stage in row["stages"])
        assert all(stage["peak"] == sum(stage["split"].values()) for stage in row["stages"])


def test_the_default_plan_takes_no_more_than_full_fine_tuning_but_its_stage_embedding() -> None:
    results = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    rows = {(row["model"], row["plan"]): row for row in results["rows"] if "refused" not in row}
    for entry in results["default"]:
        freeze = rows[entry["model"], "freeze"]
        # The stage embedding's table, its gradient and its state train beside the model.
        assert entry["more_bytes"] < 1_000_000
        assert freeze["stages"][-1]["peak"] < freeze["stages"][0]["peak"]


def test_every_goal_is_met_by_a_plan() -> None:
    results = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    assert [entry["met"] for entry in results["targets"]] == ["yes"] * 5


def test_predictions_were_within_ten_percent_of_real_runs() -> None:
    results = json.loads((FOLDER / "validation.json").read_text(encoding="utf-8"))
    summary = results["summary"]
    assert summary["within"] == summary["exact"] == summary["count"] == len(results["rows"])
    assert summary["models"] >= 6
    assert summary["plans"] >= 4
    for row in results["rows"]:
        assert row["ratio"] == pytest.approx(row["predicted"] / row["measured"], rel=1e-5)


@pytest.mark.slow
def test_a_row_of_a_published_model_is_measured_again() -> None:
    command = [sys.executable, str(FOLDER / "run.py"), "--row", "DiT-XL/2", "full"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    row = json.loads(done.stdout.splitlines()[-1])
    parameters = 749_826_464
    assert row["split"]["weights"] >= FLOAT * parameters
    assert row["split"]["optimizer"] >= 2 * FLOAT * 0.99 * parameters
    results = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    (kept,) = [one for one in results["rows"] if (one["model"], one["plan"]) == ("DiT-XL/2", "full")]
    assert (row["peak"], row["split"]) == (kept["peak"], kept["split"])
