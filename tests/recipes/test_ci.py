"""CI runs what the README tells users to run."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path


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


def test_ci_stops_at_the_first_failure_and_is_a_program() -> None:
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text().splitlines()
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def test_the_readme_s_recipe_exists() -> None:
    words = next(line for line in readme_commands() if line.startswith("accelerate launch")).split()
    assert (ROOT / words[2]).is_file()
