"""Captions of any kind of value: text, numbers, and lists of which one is drawn in every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .errors import DataError
from .listing import printable


if TYPE_CHECKING:
    from datasets import Dataset

Caption = str | list[str]


def as_captions(values: Iterable[Any], where: Callable[[int], str]) -> list[str] | list[list[str]]:
    """Captions of all rows: text, or a list of texts each if any row has a list. Numbers become text.

    Args:
        values: As they were read.
        where: Row number -> its place, in brackets and after a space, for the message.

    Raises:
        DataError: Some are missing, empty or of another type; the message names the first and counts them.
    """
    captions: list[Any] = []
    wrong: list[tuple[int, Any]] = []
    for row, value in enumerate(values):
        caption = _caption(value)
        if caption is None:
            wrong.append((row, value))
        captions.append(caption)
    if wrong:
        row, value = wrong[0]
        more = f" {len(wrong)} rows have none." if len(wrong) > 1 else ""
        raise DataError(
            f"row {row} of the training set has no caption{where(row)}: got {value!r}.{more} Write a text, a number "
            "or a list of them, or remove the image."
        )
    if not any(isinstance(caption, list) for caption in captions):
        return captions
    for row, caption in enumerate(captions):
        if isinstance(caption, str):
            captions[row] = [caption]
    return captions


def with_captions(data: Dataset, where: Callable[[int], str]) -> Dataset:
    """The data with a column `text` of captions; data that has nothing but text there stays as it is.

    Args:
        data: Column `text`, of any type.
        where: As `as_captions` takes it.

    Raises:
        DataError: As `as_captions`.
    """
    from datasets import ClassLabel

    stored = data["text"][:]
    values = stored
    feature = data.features["text"]
    if isinstance(feature, ClassLabel):
        # The number of a class is no caption, its name is.
        names = dict(enumerate(feature.names))
        values = [names.get(value) for value in values]
    captions = as_captions(values, where)
    if captions == stored:
        return data
    return data.remove_columns("text").add_column("text", captions)  # type: ignore[call-arg]


def has_lists(data: Dataset) -> bool:
    """Whether the captions of the data are lists, of which one is drawn in every epoch."""
    from datasets import Value

    feature = data.features.get("text")
    return feature is not None and not isinstance(feature, Value)


def first_captions(data: Dataset, count: int) -> tuple[str, ...]:
    """Captions of the first rows; of a list the first.

    Args:
        data: Column `text`, of captions.
        count: How many rows.
    """
    found = []
    # Without the images, which would be decoded.
    texts = data.select_columns("text")[:count]["text"]
    for caption in texts:
        found.append(caption if isinstance(caption, str) else caption[0])
    return tuple(found)


def _caption(value: Any) -> Caption | None:
    """One row's caption, or None where there is none."""
    if isinstance(value, (list, tuple)):
        texts = [_text(item) for item in value]
        return None if not texts or None in texts else texts  # type: ignore[return-value]
    return _text(value)


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        # Half of an emoji, which a cut JSON file may end in, is no text that can be stored.
        return value if value.strip() and printable(value) == value else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return str(value) if math.isfinite(value) else None
