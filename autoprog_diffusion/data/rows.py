"""Choose rows and classes of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from datasets import Dataset


def split_by(data: Dataset, held_out: np.ndarray) -> tuple[Dataset, Dataset]:
    """Split the data in two.

    Args:
        data: Any.
        held_out: (N,) bool.

    Returns:
        The rows that are not held out, and those that are.
    """
    return data.select(np.flatnonzero(~held_out)), data.select(np.flatnonzero(held_out))


def spread(count: int, most: int) -> list[int]:
    """Row numbers, evenly spread; all rows where there are fewer.

    Args:
        count: Number of rows.
        most: How many to take of them.
    """
    most = min(most, count)
    return [row * count // most for row in range(most)]


def with_labels(data: Dataset, labels: list[int], names: list[str]) -> Dataset:
    """The data with a new column `label`.

    Args:
        data: Without such a column.
        labels: Number of every row's class.
        names: Of the classes.
    """
    from datasets import ClassLabel

    data = data.add_column("label", labels)  # type: ignore[call-arg]
    return data.cast_column("label", ClassLabel(names=names))


def unused(names: Sequence[str], labels: Iterable[int]) -> list[str]:
    """Names of the classes that no label is of."""
    used = set(labels)
    found = []
    for label, name in enumerate(names):
        if label not in used:
            found.append(name)
    return found
