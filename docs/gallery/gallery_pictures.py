"""The pictures of the page: what a run drew before and after, above real pictures."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from examples import Example
from PIL import Image

from autoprog_diffusion.training.run_file import read_run_file
from autoprog_diffusion.training.samples import save_grid


COLOURS = 128  # of the palette: a picture of the page has under 200 kB


def draw(example: Example) -> None:
    """Write the picture of an example whose run has ended."""
    drawn = example.output / "before_after.png"
    if not drawn.is_file():  # a vision transformer draws nothing
        drawn = example.output / "timeline.png"
    parts = [Image.open(drawn)]
    if example.shows is not None:
        parts.append(strip(example, example.data / example.shows))
    save(stacked(parts), example.image)


def strip(example: Example, folder: Path) -> Image.Image:
    """A row of real pictures: those of the prompts that are in the folder, or one of every class."""
    if example.captions:
        titles = list(read_run_file(example.run_file).values["validation_prompts"].words or ())
        lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        names = {row["text"]: row["file_name"] for row in map(json.loads, lines)}
        files = [folder / names[title] if title in names else None for title in titles]
        titles = [""] * len(titles)  # the run's picture has them
    else:
        titles = sorted(path.name for path in folder.iterdir())
        files = [min((folder / title).glob("*.png")) for title in titles]
    images = [None if file is None else Image.open(file).convert("RGB") for file in files]
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "strip.png"
        save_grid(path, titles, [(folder.name.replace("_", " "), images)])
        return Image.open(path).convert("RGB")


def stacked(parts: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below the other, as wide as the widest."""
    whole = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part.convert("RGB"), (0, top))
        top += part.height
    return whole


def save(image: Image.Image, path: Path) -> None:
    """Save with a palette, which these pictures lose nothing to speak of by."""
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
