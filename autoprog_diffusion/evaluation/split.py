"""Hold a share of the data out: captions and near-duplicate images stay on one side."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .duplicates import MOST_IMAGES, NEAR, near_duplicates, thumbnails


if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

LEAST_IMAGES = 16  # that are worth holding out: fewer say little
MOST_SHARE = 0.5  # that --held_out_share may be
MOST_HELD_OUT = 128  # more would be missed in training, and change little
LARGEST_GROUP = 0.25  # of what is held out: a caption of more images is no name of one picture
LARGEST_PART = 0.2  # of a class


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
    groups = _groups(data, wanted, split)
    small = None
    if len(data) <= MOST_IMAGES:
        small = thumbnails(data, folder, accelerator)
    else:
        split.notes.append(f"{len(data):,} images are too many to look for near-duplicates among them")
    _take(split, wanted, data=data, groups=_shuffled(data, groups, seed), small=small)
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


def count_across(held_out: Dataset, trained: Dataset, *, folder: Path, accelerator: Accelerator) -> str | None:
    """A sentence on images of a validation set that are trained on as well, or None.

    Args:
        held_out: Column `image`.
        trained: The same.
        folder: Where thumbnails of the images are kept.
        accelerator: Of the run.
    """
    if len(trained) > MOST_IMAGES:
        return f"{len(trained):,} images are too many to look for those of the validation set among them"
    some = thumbnails(held_out, folder / "held_out", accelerator)
    found = int(near_duplicates(some, thumbnails(trained, folder, accelerator)).sum())
    if not found:
        return None
    return (
        f"{found} of {len(held_out)} validation images are near-duplicates of images that are trained on: the loss on "
        "them says nothing of new images"
    )


def _groups(data: Dataset, wanted: int, split: Split) -> list[list[int]]:
    """Rows that stay together: those of equal captions, or every row alone."""
    alone = [[row] for row in range(len(data))]
    if "text" not in data.column_names:
        return alone
    groups = list(_by_caption(data).values())
    largest = max(1, int(LARGEST_GROUP * wanted))
    allowed = [rows for rows in groups if len(rows) <= largest]
    if sum(map(len, allowed)) >= 2 * wanted:
        return allowed
    split.notes.append(f"{len(groups)} different captions name {len(data)} images: equal captions are on both sides")
    return alone


def _by_caption(data: Dataset) -> dict[int, list[int]]:
    """Rows by the first row that a caption joins them to."""
    first: dict[str, int] = {}
    leader = list(range(len(data)))

    def find(row: int) -> int:
        while leader[row] != row:
            row = leader[row]
        return row

    captions = data.select_columns("text")[:]["text"]
    for row, caption in enumerate(captions):
        for text in [caption] if isinstance(caption, str) else caption:
            words = " ".join(text.lower().split())
            other = first.setdefault(words, row)
            low, high = sorted((find(row), find(other)))
            leader[high] = low
    groups: dict[int, list[int]] = {}
    for row in range(len(data)):
        groups.setdefault(find(row), []).append(row)
    return groups


def _shuffled(data: Dataset, groups: list[list[int]], seed: int) -> Iterator[list[int]]:
    """The groups in random order; of data with classes, all classes in turn."""
    order = np.random.default_rng(seed).permutation(len(groups))
    if "label" in data.column_names:
        labels = np.asarray(data["label"][:])
        own = labels[[groups[place][0] for place in order]]
        # How many of its class come before each.
        turn = np.zeros(len(order), dtype=int)
        for label in np.unique(own):
            turn[own == label] = np.arange(int((own == label).sum()))
        order = order[np.argsort(turn, kind="stable")]
    for place in order:
        yield groups[place]


def _room_in_classes(data: Dataset) -> dict[Any, int]:
    """Label -> rows of it that may be held out; empty without classes."""
    if "label" not in data.column_names:
        return {}
    labels, counts = np.unique(np.asarray(data["label"][:]), return_counts=True)
    room = {}
    for label, count in zip(labels.tolist(), counts.tolist()):
        room[label] = int(LARGEST_PART * count)
    return room


def _take(split: Split, wanted: int, *, data: Dataset, groups: Iterator[list[int]], small: Tensor | None) -> None:
    """Hold groups out until there are enough; those with near-duplicates elsewhere are left."""
    room = _room_in_classes(data)
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
