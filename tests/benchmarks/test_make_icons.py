"""Icons are sorted into classes by name, drawn black on white, and split by their sets."""

from __future__ import annotations

import importlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


INFO = {"name": "A", "author": {"name": "N", "url": "u"}, "license": {"spdx": "MIT", "url": "l"}, "palette": False}
FULL = {"body": '<path fill="currentColor" d="M0 0h24v24H0z"/>'}
HALF = {"body": '<path fill="currentColor" d="M0 0h12v24H0z"/>'}
SETS: dict[str, Any] = {
    "ph": {"info": INFO, "icons": {"bell": FULL, "bell-thin": {"body": '<path d="M0 0h6v24H0z"/>'}}},
    "mdi": {
        "info": INFO,
        "icons": {
            "bell": FULL,
            "bell-outline": HALF,
            "bell-old": {**HALF, "hidden": True},
            "outline-sun-24px": {"body": '<path d="M0 0h24v12H0z"/>', "width": 24, "height": 12},
            "x": HALF,
        },
    },
    "colours": {"info": {**INFO, "palette": True}, "icons": {"bell": HALF}},
    "unfree": {"info": {**INFO, "license": {"spdx": "CC-BY-NC-4.0"}}, "icons": {"bell": HALF}},
}


@pytest.fixture
def icons(benchmark_folder: Callable[[str], Path]) -> ModuleType:
    pytest.importorskip("resvg_py")
    benchmark_folder("vit_optimizer_state")
    return importlib.import_module("make_icons")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    files = {f"package/json/{name}.json": {"width": 24, "height": 24, **content} for name, content in SETS.items()}
    order = ("mdi", "colours", "unfree", "ph")
    files["package/collections.json"] = {name: SETS[name]["info"] for name in order}
    with tarfile.open(tmp_path / "icons.tgz", "w:gz") as file:
        for name, content in files.items():
            text = json.dumps(content).encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            file.addfile(entry, io.BytesIO(text))
    return tmp_path / "icons.tgz"


def test_a_concept_is_a_name_without_style(icons: ModuleType) -> None:
    names = {
        "bell": "bell",
        "outline-bell-24px": "bell",
        "arrow-left-02-duotone": "arrow-left",
        "bold": "bold",
        "circle-line": "circle",
        "line-chart": "chart",
        "bell-off": "bell-off",
    }
    assert {name: icons.concept(name) for name in names} == names


def test_free_sets_in_one_colour_become_classes_and_a_split(icons: ModuleType, archive: Path) -> None:
    sets = icons.read_sets(archive)
    assert list(sets) == ["mdi", "ph"]
    arrays = icons.make(sets)
    assert arrays["classes"].tolist() == ["bell", "sun"]
    # The bell of `ph` is that of `mdi`; what is hidden, and a concept of one letter, are left out.
    assert arrays["y"].tolist() == [0, 0, 0, 1]
    assert arrays["sets"].tolist() == ["mdi", "mdi", "ph", "mdi"]
    assert arrays["test"].tolist() == [False, False, True, False]
    assert icons.notice(sets, {"mdi"}) == "mdi\tA\tN\tu\tMIT\tl\n"


def test_icons_are_black_on_white_with_a_margin_in_a_square(icons: ModuleType, archive: Path) -> None:
    pictures = icons.make(icons.read_sets(archive))["x"]
    assert pictures.shape == (4, 32, 32)
    assert pictures.dtype == np.uint8
    for picture in pictures:
        assert set(np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])) == {255}
    full, half, _, flat = pictures
    assert full[16, [2, 16, 29]].tolist() == [0, 0, 0]
    assert half[16, [2, 14, 17, 29]].tolist() == [0, 0, 255, 255]
    # An icon of 24 x 12 keeps its shape.
    assert flat[[7, 10, 21, 24], 16].tolist() == [255, 0, 0, 255]


def test_a_set_gives_few_icons_of_a_class(icons: ModuleType) -> None:
    bodies = [f'<path d="M0 0h{width}v24H0z"/>' for width in range(2, 16, 2)]
    many = [{"body": body, "width": 24, "height": 24} for body in bodies]
    sets = {"mdi": icons.IconSet(info={}, icons={"bell": many})}
    assert len(icons.make(sets)["x"]) == icons.MOST
