"""Images of the training data, to set beside the drawn ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from autoprog_diffusion.data.decode import read_image

from .samples import Row


if TYPE_CHECKING:
    from datasets import Dataset


def real_rows(data: Dataset, titles: Sequence[str], size: int) -> list[Row]:
    """Images of the data to set beside the drawn ones: those of the titles, or some, where no title is a caption.

    Args:
        data: Columns `image` and, perhaps, `text`.
        titles: Captions of the drawn pictures.
        size: Side of the images in pixels; their middle is cut out.
    """
    rows = _rows_of(data, titles)
    if any(row is not None for row in rows):
        return [("real", [None if row is None else _real_image(data, row, size) for row in rows])]
    some = range(min(len(titles), len(data)))
    return [("training data", [_real_image(data, row, size) for row in some])]


def _rows_of(data: Dataset, titles: Sequence[str]) -> list[int | None]:
    """For every title the first row, of those that no earlier title took, with this caption."""
    rows: list[int | None] = [None] * len(titles)
    left = list(range(len(titles)))
    captions = data["text"] if "text" in data.column_names else ()
    for row, caption in enumerate(captions):
        if not left:
            break
        several = caption if isinstance(caption, (list, tuple)) else (caption,)
        place = next((place for place in left if titles[place] in several), None)
        if place is not None:
            rows[place] = row
            left.remove(place)
    return rows


def _real_image(data: Dataset, row: int, size: int) -> Image.Image:
    """The middle of an image of the data, (size, size)."""
    return ImageOps.fit(read_image(data, row), (size, size), Image.Resampling.BICUBIC)
