"""Hold a share of the data out: captions and near-duplicate images stay on one side."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .duplicates import MOST_IMAGES, NEAR, thumbnails
from .groups import groups_of, room_in_classes, shuffled


if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

LEAST_IMAGES = 16  # that are worth holding out: fewer say little
MOST_SHARE = 0.5  # that --held_out_share may be
MOST_HELD_OUT = 128  # more would be missed in training, and change little


@dataclass
class Split:
    """Rows that are held out.

    Attributes:
        held_out: Sorted row numbers; none where the data is too small.
        duplicates: Images that were not held out because near-duplicates of them are trained on.
        notes: What a user may not expect, in sentences without a full stop.
    """

    held_out: list[int] = field(default_factory=list)
    duplicates: int = 0
    notes: list[str] = field(default_factory=list)

    def sides(self, data: Dataset) -> tuple[Dataset, Dataset]:
        """The data that is trained on, and that which is held out."""
        kept = np.ones(len(data), dtype=bool)
        kept[self.held_out] = False
        return data.select(np.flatnonzero(kept)), data.select(self.held_out)


def choose_held_out(data: Dataset, share: float, *, seed: int, folder: Path, accelerator: Accelerator) -> Split:
    """Choose rows to hold out, by seed: the same on every process, and after a resume.

    Rows of equal captions stay together, whatever their case, and so do near-duplicate images. Where most captions
    are those of many images, they name no picture, and only near-duplicates stay together. Of data with classes every
    class gives its part.

    Args:
        data: Column `image`, and `text` or `label`.
        share: Of the rows to hold out, at most 128 rows.
        seed: Of the choice.
        folder: Where thumbnails of the images are kept.
        accelerator: Of the run.
    """
    wanted = min(int(share * len(data)), MOST_HELD_OUT)
    if wanted < LEAST_IMAGES:
        least = int(np.ceil(LEAST_IMAGES / share))
        note = f"{len(data)} images are too few to hold some out (a share of {share} needs {least}): there is no "
        return Split(notes=[f"{note}held-out loss. Give images with --validation_data_dir{_larger_share(len(data))}"])
    split = Split()
    groups = groups_of(data, wanted, split.notes)
    small = None
    if len(data) <= MOST_IMAGES:
        small = thumbnails(data, folder, accelerator)
    else:
        split.notes.append(f"{len(data):,} images are too many to look for near-duplicates among them")
    _take(split, wanted, data=data, groups=shuffled(data, groups, seed), small=small)
    split.held_out.sort()
    if split.duplicates:
        split.notes.append(f"{split.duplicates} images are not held out since near-duplicates of them are trained on")
    if len(split.held_out) < LEAST_IMAGES:
        split.notes.append(f"only {len(split.held_out)} images could be held out: there is no held-out loss")
        split.held_out = []
    return split


def _larger_share(count: int) -> str:
    """The share of so many images that is enough, as advice; nothing where it is more than half of them."""
    if count < LEAST_IMAGES / MOST_SHARE:
        return ""
    share = math.ceil(100 * LEAST_IMAGES / count) / 100
    return f", or hold {LEAST_IMAGES} of these out with --held_out_share {share}"


def _take(split: Split, wanted: int, *, data: Dataset, groups: Iterator[list[int]], small: Tensor | None) -> None:
    """Hold groups out until there are enough; those with near-duplicates elsewhere are left."""
    room = room_in_classes(data)
    labels = data["label"][:] if room else None
    for rows in groups:
        if len(split.held_out) == wanted:
            return
        if len(split.held_out) + len(rows) > wanted:
            continue
        # Rows of classes come one by one.
        label = None if labels is None else labels[rows[0]]
        if label is not None and room[label] == 0:
            continue
        if small is not None and _has_twins(small, rows):
            split.duplicates += len(rows)
            continue
        split.held_out += rows
        if label is not None:
            room[label] -= 1


def _has_twins(small: Tensor, rows: list[int]) -> bool:
    """Whether an image of a group has a near-duplicate outside of it."""
    distances = torch.cdist(small[rows], small, p=float("inf"))
    distances[:, rows] = float("inf")
    return bool((distances <= NEAR).any())
