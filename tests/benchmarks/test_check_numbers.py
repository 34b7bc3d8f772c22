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
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in VALUES["rows"]))
    return tmp_path


def wrong(text: str, folder: Path, limit: int | None = None) -> list[str]:
    return list(check.Page(text, folder, limit).differences())


def test_the_pages_agree_with_the_result_files() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/check_numbers.py"], capture_output=True, text=True, cwd=ROOT, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len([path for path in check.pages() if check.read(path).definitions]) >= 2


A_VALUE = [
    ("x.json", "ratios.seconds as {:.1f}x", "13.9x"),
    ("x.json", "100 * rows[model=UNet].share as {:.0f}", "-50"),
    ("x.json", "rows.0.ms / rows.1.ms as {:,.1f}", "617.2"),
    ("x.json", "rows.0.ms - rows.1.ms * 2 as {:,.0f} ms", "2,465 ms"),
    ("x.json", "rows[model=DiT, 12 blocks;kind=a b].share as {:.0%}", "25%"),
    ("x.json", "rows.# as {}", "2"),
    ("runs.jsonl", "[model=UNet].ms as {:.1f}", "2.0"),
]


def test_a_value_is_found_computed_and_formatted(results: Path) -> None:
    for file, title, text in A_VALUE:
        foot = f'\n[the-one]: {file} "{title}"\n'
        assert wrong(f"It is [{text}][the-one] fast\n{foot}", results) == []
        (line,) = wrong(f"\nIt is [1{text}][The-one] fast\n{foot}", results)
        assert line.startswith("line 2: ")
        assert text in line
        assert check.Page(f"a 1, [77][the-one].\n{foot}", results).rewritten() == f"a 1, [{text}][the-one].\n{foot}"


def test_a_number_may_be_broken_over_lines(results: Path) -> None:
    page = 'in [2\n%][a] of\n\n[a]: x.json "rows.# as {} %"\n'
    assert wrong(page, results) == []
    assert check.Page(page, results).rewritten() == page


A_SLIP = [
    ('[1][a]\n\n[a]: x.json "ratios.time as {:.1f}"', "finds no 'time'.*seconds"),
    ('[1][a]\n\n[a]: x.json "rows.7.ms as {}"', "finds no '7'"),
    ('[1][a]\n\n[a]: x.json "rows[kind=a b].ms as {}"', "finds no 'kind=a b'"),
    ('[1][a]\n\n[a]: y.json "ratios.seconds as {}"', "y.json is not in"),
    ('[1][a]\n\n[a]: x.json "rows / ratios.seconds as {}"', "cannot compute"),
    ('[1][a]\n\n[a]: x.json "1 / ratios.none as {}"', "cannot compute"),
    ('[1][a]\n\n[a]: x.json "ratios.seconds as {:d}"', "does not fit"),
    ('[1][a]\n\n[a]: x.json "ratios.seconds"', "not of the form"),
    ("[1][a]\n\n[a]: x.json", "not of the form"),
    ("[1][a]\n", "no definition of this label"),
    ('1\n\n[a]: x.json "rows.# as {}"', "defined and not used"),
    ('[2][a]\n\n[a]: x.json "rows.# as {}"\n[a]: x.json "rows.# as {}"', "defined twice"),
    ("13.9<!-- x.json: ratios.seconds as {:.1f} -->", "is no table"),
    ("<!-- table x.json: rows as Model {model} -->\n| M |\n", "is no table"),
    ("<!-- table x.json: ratios as M {m} -->\n<!-- end of table -->\n", "no list"),
    ("<!-- table x.json: rows as M {size} -->\n<!-- end of table -->\n", "does not fit"),
    ("took 13.9x as long", "'13.9x' is no link"),
    ("(within 10 %, at\nmost)", "'10 %' is no link"),
]


def test_a_slip_is_named(results: Path) -> None:
    for page, message in A_SLIP:
        (line,) = wrong(page, results)
        assert re.search(message, line), line


def test_tables_code_settings_and_quotations_are_no_measurements(results: Path) -> None:
    page = (
        "# Twice: 2x\n\n| 3x | 40 % |\n\n```\n[1][a] 5x\n```\n`[1][a]`, dropout `10 %`, [1.85x](https://a.b/50%), "
        "64x64, [docs][d]\n\n[d]: https://a.b\n"
    )
    assert wrong(page, results) == []


def test_a_page_may_have_a_limit(results: Path) -> None:
    page = '[2][a] and [2][a]\n\n[a]: x.json "rows.# as {}"\n'
    assert wrong(page, results, limit=2) == []
    assert "2 numbers in the text" in wrong(page, results, limit=1)[0]


def test_a_table_is_written_and_compared(results: Path) -> None:
    head = "<!-- table x.json: rows as Model {model} | Time {ms:,.1f} ms | Share {share:+.0%} -->\n"
    foot = '\n[a]: x.json "ratios.seconds as {:.1f}"\n'
    page = check.Page(f"before\n\n{head}old\n<!-- end of table -->\nafter [1.0][a]\n{foot}", results)
    assert len(list(page.differences())) == 2
    new = page.rewritten()
    assert new == (
        f"before\n\n{head}| Model | Time | Share |\n|---|---|---|\n| DiT, 12 blocks | 1,234.5 ms | +25% |\n"
        f"| UNet | 2.0 ms | -50% |\n<!-- end of table -->\nafter [13.9][a]\n{foot}"
    )
    assert wrong(new, results) == []
    assert check.Page(new, results).rewritten() == new
