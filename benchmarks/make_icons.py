"""Make icons200_32.npz, which vit_optimizer_state and asvit_ranking read, from a public package.

    python benchmarks/make_icons.py                                     # fetches 104 MB with npm, then a minute
    python benchmarks/make_icons.py --archive iconify-json-2.2.535.tgz  # of `npm pack`

17,455 icons of 200 classes, black on white at 32 pixels: `x` (N, 32, 32) uint8, `y`, `test`, `classes`, and `sets`,
the icon set of every image. With resvg-py 0.5.0 the arrays are those that the committed runs were made with, bit for
bit.

* Sets: in one colour, not withdrawn, under one of `LICENCES`. icons_NOTICE.tsv, written beside the file, names the
  author and the licence of each.
* The concept of an icon is its name without words of style and numbers: `outline-bell-24px` is a bell.
* Classes: the concepts that most sets have; equal ones by name.
* Of a set, the first four icons of a class. A picture that is there already is left out.
* Test images are those of `TEST_SETS`: no training image has their style.

The files are inputs of benchmarks: do not commit them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from make_data import DATA, PACKAGE, DataError, check, download, draw


Icon = dict[str, Any]  # `body` and its box, as iconify's JSON has them
SIZE = 32
MARGIN = 0.06  # of an icon's longer side, on every side
CLASSES = 200
MOST = 4  # icons of one set in one class
SHORTEST = 3  # letters of a concept: `x` and `at` are signs
IMAGES = 17455
PIXELS = "d72162eadc1956817ebca8ca3b8351a3c0050f8feecf6dfeac6e3f691f91796b"  # SHA-256 of `x`
RENDERER = "resvg-py 0.5.0"

LICENCES = {"Apache-2.0", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "OFL-1.1", "Unlicense"}
TEST_SETS = {
    "at-icons",
    "f7",
    "fa",
    "fluent",
    "fluent-emoji-high-contrast",
    "fluent-mdl2",
    "hugeicons",
    "icon-park-outline",
    "icon-park-solid",
    "icon-park-twotone",
    "ion",
    "jam",
    "meteor-icons",
    "ooui",
    "ph",
    "si",
    "svg-spinners",
    "teenyicons",
    "vadivam",
}
# Words of style that may begin a name.
BEFORE = {"baseline", "bold", "filled", "line", "outline", "round", "sharp", "thin"}
# Words of style and size that may end it.
AFTER = BEFORE - {"baseline"} | {
    "alt",
    "bulk",
    "dashed",
    "duotone",
    "fill",
    "lg",
    "light",
    "micro",
    "mini",
    "o",
    "outlined",
    "regular",
    "rounded",
    "sm",
    "solid",
    "twotone",
    "xs",
}
NUMBER = re.compile(r"\d+(px)?")


@dataclass(frozen=True)
class IconSet:
    """One icon set of the package.

    Attributes:
        info: Name, author and licence.
        icons: Concept -> its icons, in the order of the file.
    """

    info: dict[str, Any]
    icons: dict[str, list[Icon]]


def concept(name: str) -> str:
    """What an icon shows, from its name."""
    words = name.split("-")
    while len(words) > 1 and words[0] in BEFORE:
        words = words[1:]
    while len(words) > 1 and (words[-1] in AFTER or NUMBER.fullmatch(words[-1])):
        words = words[:-1]
    return "-".join(words)


def parse(file: dict[str, Any]) -> IconSet:
    """An icon set from its JSON file, without what it has withdrawn."""
    box = {key: file[key] for key in ("left", "top", "width", "height") if key in file}
    icons: dict[str, list[Icon]] = {}
    for name, icon in file["icons"].items():
        if not icon.get("hidden"):
            icons.setdefault(concept(name), []).append({**box, **icon})
    return IconSet(info=file["info"], icons=icons)


def is_wanted(info: dict[str, Any]) -> bool:
    """Whether a set has one colour, is maintained, and may be used freely."""
    return info["license"].get("spdx") in LICENCES and not info.get("palette") and not info.get("hidden")


def read_sets(archive: Path) -> dict[str, IconSet]:
    """All sets that are wanted, in the package's own order."""
    order: list[str] = []
    found: dict[str, IconSet] = {}
    with tarfile.open(archive) as package:
        for member in package:  # in one pass: to look for single files would unpack the archive for each
            path = Path(member.name)
            if path.parent.name != "json" and path.name != "collections.json":
                continue
            file = package.extractfile(member)
            assert file is not None
            content = json.load(file)
            if path.name == "collections.json":
                order = [name for name, info in content.items() if is_wanted(info)]
            else:
                found[path.stem] = parse(content)
    return {name: found[name] for name in order}


def choose_classes(sets: Iterable[IconSet], count: int) -> list[str]:
    """The concepts that most sets have."""
    frequency: dict[str, int] = {}
    for icon_set in sets:
        for name in icon_set.icons:
            if len(name) >= SHORTEST:
                frequency[name] = frequency.get(name, 0) + 1
    return sorted(frequency, key=lambda name: (-frequency[name], name))[:count]


def pixels(icon: Icon) -> np.ndarray:
    """An icon (32, 32) uint8, black on white."""
    return np.asarray(draw(icon, SIZE, MARGIN).convert("L"))


def images(sets: dict[str, IconSet], classes: list[str]) -> Iterator[tuple[np.ndarray, int, str]]:
    """Every different picture once, with its class and the name of its set."""
    seen: set[bytes] = set()
    for label, name in enumerate(classes):
        for set_name, icon_set in sets.items():
            for icon in icon_set.icons.get(name, [])[:MOST]:
                picture = pixels(icon)
                key = picture.tobytes()
                if key not in seen:
                    seen.add(key)
                    yield picture, label, set_name


def make(sets: dict[str, IconSet], count: int = CLASSES) -> dict[str, np.ndarray]:
    """The arrays of the file."""
    classes = choose_classes(sets.values(), count)
    rows = list(images(sets, classes))
    names = [name for _, _, name in rows]
    return {
        "x": np.stack([picture for picture, _, _ in rows]),
        "y": np.array([label for _, label, _ in rows]),
        "test": np.array([name in TEST_SETS for name in names]),
        "classes": np.array(classes),
        "sets": np.array(names),
    }


def notice(sets: dict[str, IconSet], used: Iterable[str]) -> str:
    """One line per set: its name, title, author and licence, with their addresses."""
    lines = []
    for name in sorted(used):
        info = sets[name].info
        author = info["author"]
        licence = info["license"]
        cells = [name, info["name"], author["name"], author.get("url", ""), licence["spdx"], licence.get("url", "")]
        lines.append("\t".join(cells) + "\n")
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=DATA, help="where the files are written")
    parser.add_argument("--archive", type=Path, help="the package, already downloaded")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive = args.archive or download(Path(folder))
        check(archive)
        sets = read_sets(archive)
    arrays = make(sets)
    count = len(arrays["x"])
    if count != IMAGES:
        raise DataError(f"{count} icons, not {IMAGES}, are different at {SIZE} pixels: {PACKAGE} needs {RENDERER}.")
    args.data_dir.mkdir(parents=True, exist_ok=True)
    target = args.data_dir / "icons200_32.npz"
    np.savez_compressed(
        target,
        x=arrays["x"],
        y=arrays["y"],
        test=arrays["test"],
        classes=arrays["classes"],
        sets=arrays["sets"],
    )
    text = notice(sets, set(arrays["sets"].tolist()))
    (args.data_dir / "icons_NOTICE.tsv").write_text(text, encoding="utf-8")
    print(f"written: {count} icons, {target}")
    if hashlib.sha256(arrays["x"].tobytes()).hexdigest() != PIXELS:
        print(f"the pixels are not those of the committed runs, which were drawn by {RENDERER}.")


if __name__ == "__main__":
    main()
