"""Pictures: likeness against drift, and what the models of every method draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw


LABEL = 190  # pixels beside a row of pictures


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Likeness against drift of the rows of one case; lines reach from the lowest to the highest seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=110, layout="constrained")
    axis = figure.subplots()
    for row in rows:
        low = row["similarity"] - row["lowest"]
        high = row["highest"] - row["similarity"]
        axis.errorbar(row["drift"], row["similarity"], yerr=[[low], [high]], fmt="o", label=row["words"])
    axis.set(xlabel="drift of other prompts (less is better)", ylabel="likeness of the subject")
    axis.legend(fontsize=7)
    figure.savefig(path)


def draw_samples(rows: Sequence[dict[str, Any]], strips: Path, path: Path) -> None:
    """A row of pictures for every method: four prompts of the test, then four that have nothing to do with it."""
    found = [(row["words"], latest(strips, row)) for row in rows]
    shown = [(words, strip) for words, strip in found if strip is not None]
    if not shown:
        return
    width = LABEL + max(strip.width for _, strip in shown)
    picture = Image.new("RGB", (width, sum(strip.height for _, strip in shown)), "white")
    pen = ImageDraw.Draw(picture)
    top = 0
    for words, strip in shown:
        pen.text((6, top + strip.height // 2 - 6), words, fill="black")
        picture.paste(strip, (LABEL, top))
        top += strip.height
    picture.save(path)


def latest(strips: Path, row: dict[str, Any]) -> Image.Image | None:
    """What the last seed of a row drew; None where nothing was kept."""
    files = sorted(strips.glob(f"{row['method']}_[0-9]*_{row['rate']:g}.png"))
    return Image.open(files[-1]).convert("RGB") if files else None
