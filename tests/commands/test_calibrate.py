"""`autoprog-diffusion calibrate`: with --json the numbers are those of the file that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoprog_diffusion.commands.calibrate import run
from autoprog_diffusion.planner import calibrate
from autoprog_diffusion.planner.machine import Calibration


def test_json_holds_what_the_file_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calibrate, "SECONDS", 0.0)
    monkeypatch.setattr(calibrate, "LEAST", 1)
    monkeypatch.setattr(calibrate, "ELEMENTS", 2**12)
    monkeypatch.setattr(calibrate, "PARAMETERS", 2**12)
    path = tmp_path / "calibration.json"
    assert run(["--device", "cpu", "--output", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("file") == str(path)
    assert told == json.loads(path.read_text(encoding="utf-8"))
    assert Calibration.load(path).products > 0
