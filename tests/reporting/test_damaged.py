"""Folders that are no run, and files that are damaged: one error that names them, whatever they hold."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoprog_diffusion.commands.report import run
from autoprog_diffusion.growth.errors import GrowthError
from autoprog_diffusion.reporting import ReportError, read_run, write_page

from .made import Made, make_run
from .page_parser import Page


FILES = ("run.json", "growth.json", "metrics.json", "held_out.json")
DAMAGES = {
    "empty": "",
    "cut off": '{"plan": {"num_bl',
    "no object": "[1, 2]",
    "no text": "\udcff",
    "deep": "[" * 100_000,
    "long number": '{"steps": ' + "9" * 10_000 + "}",
}
VALUES: tuple[Any, ...] = (
    None,
    "x",
    [],
    {},
    -1,
    0,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    True,
    ["a"],
    {"a": None},
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "whole", Made(steps=16, blocks=3, stages=2))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_folders_that_are_no_run_are_refused_by_what_they_are(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    cut = make_run(tmp_path / "more" / "cut", Made(done=40))
    checkpoint = cut / "checkpoints" / "checkpoint-40"
    messages = {
        tmp_path / "none": "none does not exist: give the --output_dir of a run",
        tmp_path / "file": "file is a file",
        tmp_path / "empty": "holds no run, since it has no run.json: give the --output_dir of a run.$",
        tmp_path / "more": r"Folders in it hold runs: \['cut'\]",
        checkpoint: f"is a checkpoint: give the folder of its run, {cut}",
    }
    for place, message in messages.items():
        with pytest.raises(ReportError, match=message):
            write_page([folder, place])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(folder: Path, name: str, damage: str) -> None:
    (folder / name).write_text(DAMAGES[damage], encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ReportError, match=f"{name} (cannot be read|is damaged)"):
        read_run(folder)


def test_a_damaged_plan_is_named_where_nothing_else_has_it(folder: Path) -> None:
    (folder / "growth.json").unlink()
    (folder / "metrics.json").unlink()
    (folder / "growth_plan.json").write_text('{"plan_version": 1, "num_blocks": 1000000000, "stages": []}')
    with pytest.raises(ReportError, match="growth_plan.json is damaged"):
        read_run(folder)
    plan = {"plan_version": 1, "num_blocks": 10**9, "num_training_steps": 5, "stages": [{"start": 0, "blocks": [0]}]}
    (folder / "growth_plan.json").write_text(json.dumps(plan))
    with pytest.raises(ReportError, match="num_blocks is 1000000000, more than any model has"):
        read_run(folder)


def test_columns_of_different_lengths_are_damage(folder: Path) -> None:
    values = json.loads((folder / "metrics.json").read_text())
    values["rows"]["loss"].pop()
    (folder / "metrics.json").write_text(json.dumps(values))
    with pytest.raises(ReportError, match="metrics.json is damaged: its columns have different lengths"):
        read_run(folder)


def places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in some JSON, from the outside in."""
    if path:
        yield path
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from places(value, (*path, key))


def refused(folder: Path) -> str | None:
    """Why a run is refused; None where its page is well-formed."""
    try:
        file = write_page([folder])
    except ReportError as error:
        return str(error)
    Page(file.read_text(encoding="utf-8"))
    return None


@pytest.mark.parametrize("name", [*FILES, "growth_plan.json"])
def test_any_value_in_the_place_of_another_is_told_or_refused(folder: Path, name: str) -> None:
    """No other error, and no page that is not well-formed, whatever stands in a file."""
    if name == "growth_plan.json":
        (folder / "growth.json").unlink()
        (folder / "metrics.json").unlink()
    whole = (folder / name).read_text()
    # Of the many steps and settings a few will do.
    draw = random.Random(name)
    found = list(places(json.loads(whole)))
    chosen = draw.sample(found, min(60, len(found)))
    told = 0
    for path in chosen:
        values = json.loads(whole)
        at = values
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = draw.choice(VALUES)
        (folder / name).write_text(json.dumps(values))
        refusal = refused(folder)
        assert refusal is None or name in refusal, path
        told += refusal is None
    assert told < len(chosen)


def test_the_page_is_written_where_it_is_asked_for_or_not_at_all(folder: Path, tmp_path: Path) -> None:
    assert write_page([folder]) == folder / "report.html"
    assert write_page([folder], tmp_path / "new" / "page.html") == tmp_path / "new" / "page.html"
    with pytest.raises(ReportError, match=r"is a folder: name a file in it, for example .*report\.html"):
        write_page([folder], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=r"cannot be written to .*page\.html: .*Choose another --output"):
        write_page([folder], tmp_path / "file" / "page.html")
    with pytest.raises(ReportError, match="no run is named"):
        write_page([])


def test_the_command_prints_the_path_and_has_exit_codes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder / 'report.html'}\n"
    assert run([str(folder), "--output", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    with pytest.raises(GrowthError, match="does not exist"):
        run([str(folder / "none")])
    with pytest.raises(GrowthError, match="no run is named"):
        run([])
    with pytest.raises(SystemExit) as ended:
        run([str(folder), "--nonsense"])
    assert ended.value.code == 2
