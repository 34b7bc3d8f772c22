"""Rows that stay on one side of a split: those of equal captions; and the order in which groups of rows are tried."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from datasets import Dataset

LARGEST_GROUP = 0.25  # of what is held out: a caption of more images is no name of one picture
LARGEST_PART = 0.2  # of a class


def groups_of(data: Dataset, wanted: int, notes: list[str]) -> list[list[int]]:
    """Rows that stay together: those of equal captions, or every row alone.

    Args:
        data: Column `text`, or none.
        wanted: Rows to hold out.
        notes: Gets a sentence where equal captions are on both sides.
    """
    alone = [[row] for row in range(len(data))]
    if "text" not in data.column_names:
        return alone
    groups = list(_by_caption(data).values())
    largest = max(1, int(LARGEST_GROUP * wanted))
    allowed = [rows for rows in groups if len(rows) <= largest]
    if sum(map(len, allowed)) >= 2 * wanted:
        return allowed
    notes.append(f"{len(groups)} different captions name {len(data)} images: equal captions are on both sides")
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


def shuffled(data: Dataset, groups: list[list[int]], seed: int) -> Iterator[list[int]]:
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


def room_in_classes(data: Dataset) -> dict[Any, int]:
    """Label -> rows of it that may be held out; empty without classes."""
    if "label" not in data.column_names:
        return {}
    labels, counts = np.unique(np.asarray(data["label"][:]), return_counts=True)
    room = {}
    for label, count in zip(labels.tolist(), counts.tolist()):
        room[label] = int(LARGEST_PART * count)
    return room
