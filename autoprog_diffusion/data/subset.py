"""--max_train_samples: a random choice that depends on the seed alone, the same on all ranks and after a resume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError
from .reading import Reading
from .rows import spread


if TYPE_CHECKING:
    from datasets import Dataset


def draw_samples(data: Dataset, most: int | None, seed: int, *, reading: Reading, balanced: bool = False) -> Dataset:
    """At most so many random rows, in the order of the data.

    Args:
        data: Any data.
        most: How many; None takes all.
        seed: Of the choice.
        reading: Counts the others.
        balanced: Take as many of every class, a number in the column `label`, as they allow.

    Raises:
        DataError: It is less than one.
    """
    if most is not None and most < 1:
        raise DataError(f"--max_train_samples {most} leaves nothing to train on: use 1 or more, or remove the flag.")
    if most is None or most >= len(data):
        return data
    order = np.random.default_rng(seed).permutation(len(data))
    if balanced:
        # Stable: rows of a class stay shuffled, so that evenly spread places are random rows of every class.
        labels = np.asarray(data["label"][:])
        order = order[np.argsort(labels[order], kind="stable")]
        order = order[spread(len(data), most)]
    chosen = order[:most]
    reading.leave_out(f"beyond --max_train_samples {most}", count=len(data) - most)
    reading.used = most
    drawn = data.select(np.sort(chosen))
    if "label" in data.column_names:
        _note_lost_classes(data, drawn, reading)
    return drawn


def _note_lost_classes(data: Dataset, drawn: Dataset, reading: Reading) -> None:
    """Say which classes have images, and none among those that were drawn."""
    lost = set(data["label"][:])
    lost.difference_update(drawn["label"][:])
    if lost:
        feature: Any = data.features["label"]
        names = [feature.names[label] for label in sorted(lost)]
        reading.notes.append(f"{len(names)} classes have no image among the samples, for example {names[:5]}")
