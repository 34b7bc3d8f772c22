"""The numbers of the README and the docs are those of the result files, and the check that says so can fail."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


ROOT = Path(__file__).resolve().parents[2]
VALUES = {
    "ratios": {"seconds": 13.866, "none": 0},
    "rows": [
        {"model": "DiT, 12 blocks", "kind": "a b", "ms": 1234.5, "share": 0.25},
        {"model": "UNet", "kind": "a b", "ms": 2.0, "share": -0.5},
    ],
}


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_numbers", ROOT / "benchmarks" / "check_numbers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check = load()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "x.json").write_text(json.dumps(VALUES))
    return tmp_path


def test_the_pages_agree_with_the_result_files() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/check_numbers.py"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len([path for path in check.pages() if check.MARKER.search(path.read_text(encoding="utf-8"))]) >= 2


@pytest.mark.parametrize(
    ("expression", "layout", "text"),
    [
        ("ratios.seconds", "{:.1f}x", "13.9x"),
        ("100 * rows[model=UNet].share", "{:.0f}", "-50"),
        ("rows.0.ms / rows.1.ms", "{:,.1f}", "617.2"),
        ("rows.0.ms - rows.1.ms * 2", "{:,.0f} ms", "2,465 ms"),
        ("rows[model=DiT, 12 blocks;kind=a b].share", "{:.0%}", "25%"),
        ("rows.#", "{}", "2"),
    ],
)
def test_a_value_is_found_computed_and_formatted(results: Path, expression: str, layout: str, text: str) -> None:
    marker = f"<!-- x.json: {expression} as {layout} -->"
    assert list(check.differences(f"It is {text}{marker} fast", results)) == []
    (line,) = check.differences(f"\nIt is 1{text}{marker} fast", results)
    assert line.startswith("line 2: ")
    assert text in line
    assert check.rewritten(f"a 1, {text.replace('2', '77')}{marker}.", results) == f"a 1, {text}{marker}."


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("<!-- x.json: ratios.time as {:.1f} -->", "finds no 'time'.*seconds"),
        ("<!-- x.json: rows.7.ms as {} -->", "finds no '7'"),
        ("<!-- x.json: rows[kind=a b].ms as {} -->", "finds no 'kind=a b'"),
        ("<!-- y.json: ratios.seconds as {} -->", "y.json is not in"),
        ("<!-- x.json: rows / ratios.seconds as {} -->", "cannot compute"),
        ("<!-- x.json: 1 / ratios.none as {} -->", "cannot compute"),
        ("<!-- x.json: ratios.seconds as {:d} -->", "does not fit"),
        ("<!-- x.json: ratios.seconds -->", "is no marker"),
        ("<!-- table x.json: rows as Model {model} -->\n| M |\n", "is no marker"),
        ("<!-- table x.json: ratios as M {m} -->\n<!-- end of table -->\n", "no list"),
        ("<!-- table x.json: rows as M {size} -->\n<!-- end of table -->\n", "does not fit"),
    ],
)
def test_what_is_not_there_is_named(results: Path, marker: str, message: str) -> None:
    (line,) = check.differences(f"13.9{marker}", results)
    assert re.search(message, line), line


def test_a_table_is_written_and_compared(results: Path) -> None:
    head = "<!-- table x.json: rows as Model {model} | Time {ms:,.1f} ms | Share {share:+.0%} -->\n"
    page = f"before\n\n{head}old\n<!-- end of table -->\nafter 1.0<!-- x.json: ratios.seconds as {{:.1f}} -->\n"
    assert len(list(check.differences(page, results))) == 2
    new = check.rewritten(page, results)
    assert new == (
        f"before\n\n{head}| Model | Time | Share |\n|---|---|---|\n| DiT, 12 blocks | 1,234.5 ms | +25% |\n"
        "| UNet | 2.0 ms | -50% |\n<!-- end of table -->\nafter 13.9<!-- x.json: ratios.seconds as {:.1f} -->\n"
    )
    assert list(check.differences(new, results)) == []
    assert check.rewritten(new, results) == new


def test_a_marker_without_a_number_cannot_be_written(results: Path) -> None:
    with pytest.raises(check.NumberError, match="no number like"):
        check.rewritten("words<!-- x.json: ratios.seconds as {:.1f} -->", results)
