"""What a run leaves of its measurements, at its end and in every checkpoint."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from autoprog_diffusion.growth import GrowthConfig, GrowthPlan, GrowthScheduler
from autoprog_diffusion.training.checkpoints import save_checkpoint
from autoprog_diffusion.training.metrics import COLUMNS, Metrics
from autoprog_diffusion.training.saved_metrics import keep_measurements, write_metrics_json

from ..tasks.conftest import forget
from .rows import metrics_of


def test_every_column_is_read_back_with_six_digits(tmp_path: Path) -> None:
    metrics = metrics_of({"loss": 0.123456789, "memory": 622526464}, {"loss": 2.0, "seconds": 1e-9, "searching": True})
    metrics.validations.append({"step": 2.0, "accuracy": 0.25})
    write_metrics_json(tmp_path / "metrics.json", metrics)
    values = json.loads((tmp_path / "metrics.json").read_text())
    assert sorted(values) == ["metrics_version", "rows", "steps", "validations", "written"]
    assert (values["metrics_version"], values["steps"]) == (1, 2)
    assert values["validations"] == metrics.validations
    assert datetime.fromisoformat(values["written"]).tzinfo is not None
    rows = values["rows"]
    assert tuple(rows) == COLUMNS
    assert rows["loss"] == [0.123457, 2]
    assert rows["memory"] == [622526464, 2**20]  # whole numbers are exact
    assert rows["seconds"] == [1, 1e-9]
    assert rows["searching"] == [0, 1]


def test_metrics_of_no_step_are_written(tmp_path: Path) -> None:
    write_metrics_json(tmp_path / "metrics.json", Metrics())
    values = json.loads((tmp_path / "metrics.json").read_text())
    assert values["steps"] == 0
    assert set(values["rows"]) == set(COLUMNS)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_checkpoint_holds_them(tmp_path: Path, steps: int) -> None:
    forget()
    model = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(4)])
    config = GrowthConfig(num_stages=2, stage_embedding=False)
    growth = GrowthScheduler(model, config, blocks=["*"])
    optimizer = torch.optim.AdamW(growth.parameters())
    growth.prepare(model, num_training_steps=4, optimizer=optimizer)
    for _ in range(steps):
        growth.step()
    accelerator = Accelerator(cpu=True)
    keep_measurements(accelerator, growth, metrics_of(*[{}] * steps))
    save_checkpoint(accelerator, tmp_path, steps, None)
    forget()
    folder = tmp_path / f"checkpoint-{steps}"
    assert json.loads((folder / "metrics.json").read_text())["steps"] == steps
    assert GrowthPlan.load(folder / "growth.json") == growth.plan
    entered = json.loads((folder / "growth.json").read_text())["history"]
    assert [record["stage"] for record in entered] == ([0, 1] if steps else [0])
    marker = json.loads((folder / "complete.json").read_text())
    assert {"growth.json", "metrics.json"} <= set(marker["files"])  # with checksums, as all files
