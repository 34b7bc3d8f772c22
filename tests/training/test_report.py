from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoprog_diffusion.growth import GrowthConfig, GrowthPlan, GrowthScheduler, Stage
from autoprog_diffusion.training.decision_table import print_decision
from autoprog_diffusion.training.measure import counted_flops, peak_memory
from autoprog_diffusion.training.metrics import Metrics
from autoprog_diffusion.training.report import write_report
from autoprog_diffusion.training.samples import load_images, save_grid, save_images
from autoprog_diffusion.training.summary_table import print_summary
from autoprog_diffusion.training.timeline import draw_timeline

from .rows import metrics_of


SECONDS = {"training": 3.25, "saving": 1.0}


@pytest.fixture
def growth() -> GrowthScheduler:
    model = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(4)])
    config = GrowthConfig(
        num_stages=2, min_trainable=0.5, stage_embedding=False, order="interleaved", direction="unfreeze"
    )
    growth = GrowthScheduler(model, config, blocks=["*"])
    growth.prepare(model, num_training_steps=4)
    for _ in range(4):
        growth.step()
    return growth


@pytest.fixture
def metrics() -> Metrics:
    return metrics_of(
        *(
            {
                "loss": 2.0 - 0.25 * step, "seconds": 0.010 * (step // 2 + 1), "stage": step // 2,
                "resolution": 32 * (step // 2 + 1), "blocks": 2 * (step // 2 + 1), "trainable": 0.5 * (step // 2 + 1),
                "memory": 2**20 * (step + 1), "flops": (300, 1200)[step // 2],
            }
            for step in range(4)
        )
    )  # fmt: skip


def lines(text: str) -> list[list[str]]:
    """The cells of a printed table."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]


def is_drawn(path: Path) -> bool:
    image = np.asarray(Image.open(path).convert("RGB"))
    return image.shape[0] > 100 and len(np.unique(image.reshape(-1, 3), axis=0)) > 10


def test_growth_json_holds_plan_history_and_measurements(
    growth: GrowthScheduler, metrics: Metrics, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(tmp_path, growth, metrics, SECONDS)
    values = json.loads((tmp_path / "growth.json").read_text())
    assert GrowthPlan.load(tmp_path / "growth.json") == growth.plan
    assert GrowthConfig.from_dict(values["config"]) == growth.config
    assert [(row["stage"], row["step"]) for row in values["history"]] == [(0, 0), (1, 2)]
    assert [row["steps"] for row in values["stages"]] == [2, 2]
    assert [row["blocks"] for row in values["stages"]] == [2, 4]
    assert values["saving_against_full"] == pytest.approx({"time": 0.08 / 0.06, "flops": 4800 / 3000})
    assert values["seconds"] == SECONDS
    assert values["versions"]["torch"] == torch.__version__
    assert is_drawn(tmp_path / "timeline.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["growth.json", "metrics.json", "timeline.png"]
    assert "stage by stage" in capsys.readouterr().out


def test_the_table_has_a_row_per_stage_and_says_what_was_saved(
    metrics: Metrics, capsys: pytest.CaptureFixture[str]
) -> None:
    print_summary(metrics, 4, SECONDS)
    text = capsys.readouterr().out
    assert lines(text) == [
        ["1", "2", "2/4", "50%", "32", "1.7500", "10.0 ms", "50%", "25%", "2 MiB"],
        ["2", "2", "4/4", "100%", "64", "1.2500", "20.0 ms", "100%", "100%", "4 MiB"],
    ]
    assert "38% fewer FLOPs and 25% less time than as many steps of full training (stage 2)." in text
    assert "training 3.2 s, saving 1.0 s" in text
    assert "accuracy" not in text


def test_searches_have_a_row_and_a_run_that_saved_nothing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = metrics_of({"searching": True, "seconds": 3.0}, {}, *[{"stage": 1, "blocks": 4}] * 2)
    metrics.validations.append({"step": 3.0, "accuracy": 0.25, "ema_accuracy": 0.5})
    print_summary(metrics, 4, SECONDS)
    text = capsys.readouterr().out
    assert [row[0] for row in lines(text)] == ["1 search", "1", "2"]
    assert [row[6] for row in lines(text)] == ["-", "-", "1000.0 ms"]  # steps that warm up tell no time
    assert "0% fewer FLOPs and 50% more time" in text
    assert "accuracy 25.0%, of the average 50.0%" in text


@pytest.mark.parametrize(
    "candidates",
    [[{"depth": depth, "resolution": 16, "loss": 2.0, "cost": 10.0 * depth, "score": 1.5} for depth in (2, 4)],
     [{"name": f"{depth} blocks at 16", "blocks": [0] * depth, "resolution": 16, "cost": 1.0, "kappa": "inf"}
      for depth in (2, 4)],
     [{"name": f"suffix {depth}", "blocks": [0] * depth, "cost": 1.0, "kappa": "inf", "value": -depth / 8}
      for depth in (2, 4)]],
    ids=["one shot", "zero shot", "diffusion"],
)  # fmt: skip
def test_a_decision_is_printed_with_its_choice(candidates: list[dict], capsys: pytest.CaptureFixture[str]) -> None:
    diffusion = "resolution" not in candidates[0]
    choice = "suffix 2" if diffusion else {"depth": 2, "resolution": 16}
    print_decision({"stage": 0, "search": "x", "seconds": 1.0, "choice": choice, "candidates": candidates})
    rows = lines(capsys.readouterr().out)
    assert [row[1] for row in rows if "chosen" in row] == ["2"]
    assert len(rows) == 2
    assert ("50%" in rows[0]) == ("loss" in candidates[0])  # of the most expensive candidate's cost


def test_a_run_whose_stages_have_one_step_reports_flops_alone(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(metrics_of({"flops": 300}, {"stage": 1, "blocks": 1}), 2, SECONDS)
    text = capsys.readouterr().out
    assert "\n33% fewer FLOPs than as many steps of full training (stage 1).\n" in text


def test_windows_are_compared_with_nothing_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = metrics_of({}, {}, {"stage": 1}, {"stage": 1})
    print_summary(metrics, 4, SECONDS)
    text = capsys.readouterr().out
    assert [row[7:9] for row in lines(text)] == [["-", "-"]] * 2
    assert "no stage trains all blocks: what full training would have cost was not measured." in text
    heights = []
    for blocks in ((0, 1), (2, 3)):
        plan = GrowthPlan(4, 4, (Stage(0, (0, 1)), Stage(2, blocks)))
        draw_timeline(tmp_path / "timeline.png", metrics, plan)
        assert is_drawn(tmp_path / "timeline.png")
        with Image.open(tmp_path / "timeline.png") as picture:
            heights.append(picture.height)
    assert heights[0] < heights[1]  # a panel of the blocks


def test_a_run_of_one_step_is_drawn_with_and_without_validations(tmp_path: Path) -> None:
    metrics = metrics_of({})
    for validations in ([], [{"step": 1.0, "accuracy": 0.25, "ema_accuracy": 0.5}]):
        metrics.validations = validations
        draw_timeline(tmp_path / "timeline.png", metrics)
        assert is_drawn(tmp_path / "timeline.png")


def test_pictures_are_saved_in_order_and_read_back(tmp_path: Path) -> None:
    images = [Image.new("RGB", (8, 8), (index, 0, 0)) for index in range(12)]
    save_images(tmp_path / "new" / "folder", images)
    again = load_images(tmp_path / "new" / "folder", 12)
    assert [image.getpixel((0, 0)) for image in again] == [(index, 0, 0) for index in range(12)]


THE_GRID = [
    ["a"],
    ["", "ü", "a very long prompt " * 20, "a\nb"] * 4,
    ["from $5 to $10"],
    ["100 $% a$ b", r"$\frac{$ \x"],
]


def test_the_grid_takes_any_prompts(tmp_path_factory: pytest.TempPathFactory) -> None:
    for prompts in THE_GRID:
        tmp_path = tmp_path_factory.mktemp("case")
        rows = [(label, [Image.new("RGB", (8, 8), "red")] * len(prompts)) for label in ("before", "after")]
        save_grid(tmp_path / "grid.png", prompts, rows)
        image = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
        assert (image == [255, 0, 0]).all(-1).mean() > 0.2


def test_a_row_of_fewer_images_leaves_blanks(tmp_path: Path) -> None:
    red = Image.new("RGB", (8, 8), "red")
    shares = []
    for count in (3, 1):
        save_grid(tmp_path / "grid.png", ["a", "b", "c"], [("all", [red] * 3), ("some", [red] * count)])
        image = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
        shares.append((image == [255, 0, 0]).all(-1).mean())
        white = (image == 255).all(-1).mean()
    assert shares[1] == pytest.approx(shares[0] * 4 / 6, rel=0.02)
    assert white > 0.9 - shares[1]  # no axes where there is no picture


def test_flops_are_exact_and_counting_leaves_the_random_state() -> None:
    layer = torch.nn.Linear(5, 7, bias=False)
    state = torch.get_rng_state()
    for batch in (3, 6):
        found = counted_flops(lambda n=batch: layer(torch.randn(n, 5)).sum().backward())
        assert found == 2 * (2 * batch * 5 * 7)  # forward and weight gradient
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_follows_what_is_held() -> None:
    gc.collect()  # what earlier tests left may not be freed between the two
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(256 * 2**20 // 4)
    assert peak_memory(torch.device("cpu")) - before > 128 * 2**20
    assert held.sum() > 0
