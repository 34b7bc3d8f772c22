"""Grids of pictures that a run drew: found in its folder, and put into the page."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .markup import Html, element


MOST_GRIDS = 8  # in the middle of training; further ones stay in the folder
_GRID = re.compile(r"validation-(\d+)\.png$")
_BEGIN = b"\x89PNG\r\n\x1a\n"
_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Picture:
    """A PNG file of a run.

    Attributes:
        path: The file.
        title: What it shows.
        step: Optimizer steps done when it was drawn; None for the grid of the end.
    """

    path: Path
    title: str
    step: int | None


def find_pictures(folder: Path) -> Iterator[Picture]:
    """The grid of before and after, and then those of the middle of training, by step."""
    final = folder / "before_after.png"
    if final.is_file():
        yield Picture(final, "Before and after training", None)
    grids = []
    for path in folder.glob("validation-*.png"):
        match = _GRID.match(path.name)
        if match:
            grids.append((int(match[1]), path))
    for step, path in sorted(grids):
        yield Picture(path, f"After step {step:,}", step)


def spread(pictures: list[Picture], most: int = MOST_GRIDS) -> list[Picture]:
    """At most so many of some pictures, evenly spread, with the first and the last one."""
    if len(pictures) <= most:
        return pictures
    last = len(pictures) - 1
    return [pictures[round(place * last / (most - 1))] for place in range(most)]


def figure(picture: Picture, run: str) -> Html:
    """A picture with its title, inside of the page; a sentence where the file is no whole PNG."""
    content = _read(picture.path)
    if content is None:
        return element("p", f"{picture.title}: {picture.path.name} is damaged, and is not shown.", class_="note")
    image = element(
        "img",
        src=f"data:image/png;base64,{base64.b64encode(content).decode()}",
        alt=f"{picture.title}: grid of pictures that {run} drew, one column a prompt",
        width=int.from_bytes(content[16:20], "big"),
        height=int.from_bytes(content[20:24], "big"),
    )
    return element(
        "figure",
        element("figcaption", picture.title),
        element(
            "div",
            image,
            class_="scroll",
            tabindex=0,
        ),
    )


def _read(path: Path) -> bytes | None:
    """The bytes of a PNG file; None where it cannot be read, is cut off, or is something else."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    whole = content.startswith(_BEGIN) and content[12:16] == b"IHDR" and content.rstrip(b"\0").endswith(_END)
    return content if whole else None
