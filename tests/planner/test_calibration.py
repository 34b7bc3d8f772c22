"""Calibrations of machines: written, read, refused, and the times that they give."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autoprog_diffusion.planner.command_lines import recipe_of
from autoprog_diffusion.planner.errors import PlannerError
from autoprog_diffusion.planner.machine import Calibration, find_gpu, memory_machine, steady
from autoprog_diffusion.planner.models import ModelSource, find_model
from autoprog_diffusion.planner.work import Work
from autoprog_diffusion.tasks.families import ROWS


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    guessed = find_gpu("RTX 4090").calibration
    assert guessed is not None
    guessed.save(tmp_path / "deep" / "calibration.json")
    assert Calibration.load(tmp_path / "deep" / "calibration.json") == guessed
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(PlannerError, match="is no calibration"):
        Calibration.load(tmp_path / "other.json")
    assert memory_machine(24).bytes == 24e9
    assert steady(2.0).products == 2e12


def test_the_time_of_a_score_is_a_line_between_the_heads_that_were_measured() -> None:
    # 4 FLOPs a number in a head: 32 FLOPs in 2 ns, 256 FLOPs in 4 ns.
    machine = replace(
        steady(1.0),
        attention={8: 16e9, 64: 64e9},
        bandwidth=float("inf"),
    )
    for head, nanoseconds in (
        (4, 2.0),  # below the sizes measured: as long as the smallest
        (8, 2.0),
        (36, 3.0),  # half-way from 2 to 4
        (64, 4.0),
        (128, 8.0),  # above them: at the speed of the largest
    ):
        work = Work()
        work.attend(head, 4 * head)
        assert machine.seconds(work) == pytest.approx(nanoseconds * 1e-9), head


def test_an_older_calibration_is_refused(tmp_path: Path) -> None:
    old = {**vars(steady(1.0)), "attention": 1e9}
    (tmp_path / "old.json").write_text(json.dumps(old))
    with pytest.raises(PlannerError, match="is no calibration.*autoprog-diffusion calibrate"):
        Calibration.load(tmp_path / "old.json")


def test_the_class_of_a_source_is_found_by_its_recipe() -> None:
    assert recipe_of(find_model("sdxl"), lora=False) == "finetune_sdxl.py"
    assert recipe_of(find_model("sd15"), lora=False) == "finetune_sd.py"
    assert recipe_of(find_model("dit-xl"), lora=True) is None
    assert recipe_of(ModelSource("mine", "MochiTransformer3DModel"), lora=False) is None
    for row in ROWS:
        assert recipe_of(ModelSource("mine", row.transformer_class), lora=False) == "finetune_flow.py"
