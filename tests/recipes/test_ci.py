"""CI runs what the README tells users to run."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


def readme_commands() -> list[str]:
    blocks = re.findall(
        r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    first = "accelerate launch recipes/finetune_sd.py --output_dir out"
    (block,) = [lines for lines in map(str.splitlines, blocks) if first in lines and "python -m pytest" in lines]
    return block


def test_the_last_command_of_ci_is_the_readme_s_test_command() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[-1] == readme_commands()[-1] == "python -m pytest"


@pytest.mark.parametrize("name", ["run", "lowest"])
def test_ci_stops_at_the_first_failure_and_is_a_program(name: str) -> None:
    path = ROOT / ".ci" / name
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text().splitlines()
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def test_the_readme_s_recipe_exists() -> None:
    words = next(line for line in readme_commands() if line.startswith("accelerate launch")).split()
    assert (ROOT / words[2]).is_file()


def test_ci_runs_a_selection_with_the_lowest_versions() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith(".ci/lowest")]
    assert "-m smoke" in (ROOT / ".ci" / "lowest").read_text()
    lower_bounds = runpy.run_path(str(ROOT / ".ci" / "lower_bounds.py"))["lower_bounds"]
    bounds = lower_bounds((ROOT / "pyproject.toml").read_text())
    assert {"torch", "diffusers", "transformers", "accelerate", "peft", "timm"} <= set(bounds)
    text = '[project]\ndependencies = ["a>=1.2"]\n[project.optional-dependencies]\nx = ["b==2", "c-d>=0.3"]'
    assert lower_bounds(text) == {"a": "1.2", "c-d": "0.3"}


def test_the_hook_formats_with_the_pinned_ruff() -> None:
    pinned = re.search(r"ruff==([\d.]+)", (ROOT / "pyproject.toml").read_text())
    hook = re.search(r"rev: v([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert pinned is not None
    assert hook is not None
    assert pinned[1] == hook[1]


def test_make_lists_its_commands() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", text, re.MULTILINE))
    assert targets == set(re.findall(r"^([a-z]+):.*## ", text, re.MULTILINE))
    assert {"install", "check", "test", "slow", "docs"} <= targets
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        assert set(re.findall(r"run: make (\w+)", workflow.read_text())) <= targets
