"""Every benchmark is a folder with a card, and its summary is that of its runs."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FOLDERS = sorted(path.parent.name for path in BENCHMARKS.glob("*/README.md"))
SCRIPTS = sorted(
    str(path.relative_to(BENCHMARKS)) for path in BENCHMARKS.glob("*/*.py") if "argparse" in path.read_text()
)
PARTS = ("Question", "Command", "Machine", "Minutes", "Answer", "Not asked")
TABLES = {"vit_preset": "rows", "vit_growth": "rows", "vit_finetune": "table", "vit_optimizer_state": "rows"}
TABLES["against_diffusers"] = "rows"
TABLES["peft_image_gen"] = "rows"
TABLES["vit_cifar"] = "rows"


def test_every_folder_has_a_card_that_the_index_names() -> None:
    assert {path.parent.name for path in BENCHMARKS.glob("*/*.json")} <= set(FOLDERS)
    index = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\((\w+)/README.md\)", index)) == FOLDERS


def test_a_card_says_what_was_asked_and_how_to_ask_again() -> None:
    for folder in FOLDERS:
        card = (BENCHMARKS / folder / "README.md").read_text(encoding="utf-8")
        assert re.findall(r"^\* \*\*([\w ]+)\*\*:", card, re.MULTILINE)[: len(PARTS)] == list(PARTS)
        for script in re.findall(r"(?:benchmarks|vit|recipes)/[\w/]+\.py", card):
            assert (BENCHMARKS.parent / script).is_file(), script


@pytest.mark.parametrize("folder", TABLES)
def test_a_summary_is_that_of_its_runs(folder: str, benchmark_folder: Callable[[str], Path]) -> None:
    path = benchmark_folder(folder)
    common, run = importlib.import_module("common"), importlib.import_module("run")
    rows = run.table(common.Runs(path / "runs.jsonl"))
    assert common.load(path / "summary.json")[TABLES[folder]] == common.rounded(rows)


def test_numbers_are_kept_to_six_digits_and_runs_survive_a_kill(
    benchmark_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    benchmark_folder("overhead")
    common = importlib.import_module("common")
    runs = common.Runs(tmp_path / "runs.jsonl")
    assert runs.add({"method": "a", "seed": 1, "x": [1 / 3, float("nan")]})["x"] == [0.333333, None]
    runs.add({"method": "a", "seed": 0, "n": 123456789})
    with runs.path.open("a") as file:
        file.write('{"method": "b"')
    again = common.Runs(runs.path)
    assert [row["seed"] for row in again.all(method="a")] == [0, 1]
    assert list(again.missing(["a", "b"], [0, 2])) == [("b", 0), ("a", 2), ("b", 2)]
    assert len(runs.path.read_text().splitlines()) == 2
    common.save(tmp_path / "summary.json", {"list": [1, 2], "ratio": 2 / 3})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"list": [1, 2], "ratio": 0.666667}


def test_a_missing_input_names_the_script_that_makes_it(
    benchmark_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    benchmark_folder("vit_optimizer_state")
    run = importlib.import_module("run")
    with pytest.raises(SystemExit, match=r"there is no .*icons200_32.npz: `python benchmarks/make_icons.py"):
        run.load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_starts(script: str) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--help"], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
