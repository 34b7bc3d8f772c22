"""The table of `docs/patching.md`: it says what was measured, and the command still does what it says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from .patch_table import patch_row, scripts
from .rows import BY_PATH
from .scripts import CHECKOUT, ROOT, needs_checkout
from .theirs import THEIRS


ROWS = json.loads((ROOT / "docs" / "patching.json").read_text(encoding="utf-8"))["rows"]
BY_SCRIPT: dict[str, dict[str, Any]] = {row["script"]: row for row in ROWS}


def test_the_page_shows_what_was_measured() -> None:
    spec = importlib.util.spec_from_file_location("make_patching", ROOT / "docs" / "make_patching.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    text = (ROOT / "docs" / "patching.md").read_text(encoding="utf-8")
    assert maker.page(text, ROWS) == text


def test_what_runs_is_the_script_itself_with_growth_off() -> None:
    ran = {name: row["run"] for name, row in BY_SCRIPT.items() if "run" in row}
    assert ran.keys() == BY_PATH.keys()
    assert not [name for name, run in ran.items() if run["runs"] and run["different"]]
    assert all(run["changed_by_growth"] > 0 for run in ran.values() if run["runs"])
    assert all(run.get("froze", True) for run in ran.values() if run["runs"])


def test_what_diffusers_tests_passes_patched() -> None:
    tests = {name: row["tests"] for name, row in BY_SCRIPT.items() if "tests" in row}
    assert {theirs.script for theirs in THEIRS} >= tests.keys()
    # What fails on the script itself may fail on the patched one.
    assert not [name for name, found in tests.items() if found["passed"] < found.get("unpatched", found["run"])]


@needs_checkout
@pytest.mark.slow
def test_the_command_patches_and_refuses_what_the_table_says() -> None:
    examples = Path(CHECKOUT or "").resolve() / "examples"
    found = [patch_row(path, examples)[0] for path in scripts(examples)]
    assert found == [{key: value for key, value in row.items() if key not in ("run", "tests")} for row in ROWS]
