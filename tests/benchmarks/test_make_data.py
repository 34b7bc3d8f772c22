"""The input files of the benchmarks are made from the package they were made from, and from no other."""

from __future__ import annotations

import importlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image


ICONS = {
    "icons": {
        "red-square": {"body": '<path fill="#f00" d="M0 0h128v128H0z"/>'},
        "wide": {"body": '<path fill="#00f" d="M0 0h64v64H0z"/>', "width": 64, "height": 64},
        "old-name": {"body": "", "hidden": True},
        "tall": {"body": '<path fill="#0f0" d="M0 0h16v32H0z"/>', "width": 16, "height": 32},
    },
    "categories": {"Symbols": ["red-square"], "Objects": ["wide"]},
    "width": 128,
    "height": 128,
}


@pytest.fixture
def data(benchmark_folder: Callable[[str], Path]) -> ModuleType:
    pytest.importorskip("resvg_py")
    benchmark_folder("time_to_quality")
    return importlib.import_module("make_data")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    text = json.dumps(ICONS).encode()
    with tarfile.open(tmp_path / "icons.tgz", "w:gz") as file:
        entry = tarfile.TarInfo("package/json/noto.json")
        entry.size = len(text)
        file.addfile(entry, io.BytesIO(text))
    return tmp_path / "icons.tgz"


def test_icons_that_are_not_hidden_are_rendered(
    data: ModuleType, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    monkeypatch.setitem(data.COUNTS, "noto", 3)
    assert data.write(archive, ["noto"], tmp_path / "out" / "emoji.parquet") == 3
    rows = pq.read_table(tmp_path / "out" / "emoji.parquet").to_pylist()
    assert [(row["caption"], row["category"], row["style"]) for row in rows] == [
        ("red square", "Symbols", "noto"),
        ("wide", "Objects", "noto"),
        ("tall", "", "noto"),
    ]
    for row, colours in zip(rows, ([(255, 0, 0)] * 2, [(0, 0, 255)] * 2, [(255, 255, 255), (0, 255, 0)])):
        image = Image.open(io.BytesIO(row["image"]))
        assert (image.size, image.mode) == ((64, 64), "RGB")
        assert [image.getpixel(at) for at in ((63, 63), (32, 63))] == colours


def test_another_package_is_refused(data: ModuleType, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match="noto has 3 emoji, not 3729"):
        data.write(archive, ["noto"], tmp_path / "emoji.parquet")
    with pytest.raises(data.DataError, match="is not @iconify/json"):
        data.check(archive)
