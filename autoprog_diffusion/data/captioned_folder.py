"""Read a folder of images with captions: those of metadata files, or of text files beside the images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from .caption_files import caption_files, items_of_captions
from .caption_text import as_captions
from .errors import DataError
from .items import OUTSIDE_SPLITS, Columns, Item, by_split, image_table, leave_out_unused
from .listing import File, Listing
from .metadata import Row
from .metadata_items import items_of_rows, keys_of, read_rows, unlisted_reason
from .reading import Reading
from .splits import TRAIN, find_splits, missing_split, note_lookalikes, top_folder


if TYPE_CHECKING:
    from datasets import Dataset

_REPEATS = re.compile(r"\d+_")


def read_captioned(listing: Listing, columns: Columns, reading: Reading) -> Dataset | None:
    """The images to train on, with their captions; None where the folder has no captions.

    Args:
        listing: Of the folder.
        columns: Those that are asked for.
        reading: Counts what is left out.

    Raises:
        DataError: Captions are missing, come from two sources, or belong to files that are not there.
    """
    rows = read_rows(listing)
    texts = caption_files(listing)
    _check_not_empty(listing, rows, texts)
    keys = keys_of(rows)
    _check_one_source(listing, rows, texts, columns)
    splits = find_splits(listing, classes=False)
    if texts:
        items = _read_texts(listing, texts, splits, reading)
        unlisted = OUTSIDE_SPLITS
        if rows:
            reading.notes.append(f"{rows[0].file.name} has no column {columns.value!r} and is not read")
    elif columns.file_key in keys or (keys and listing.images):
        items = items_of_rows(listing, rows, columns, reading)
        unlisted = unlisted_reason(listing)
    else:
        return None
    chosen = _of_split(items, splits, listing, reading)
    note_lookalikes([item.file for item in chosen], splits, reading)
    used = [item.file for item in items]
    for name in splits:
        if name != TRAIN:
            # They are counted by their split.
            used += _of_folder(listing, name)
    leave_out_unused(listing, [*texts.values(), *used], reading, unlisted)
    _note_repeats(listing, reading)
    return _table(chosen, columns)


def _check_one_source(listing: Listing, rows: Sequence[Row], texts: dict[str, File], columns: Columns) -> None:
    """Refuse captions in metadata and in text files."""
    if texts and columns.value in keys_of(rows):
        raise DataError(
            f"{listing.root} has captions in {rows[0].file.name} (column {columns.value!r}) and in {len(texts)} text "
            "files beside the images: keep one of the two."
        )


def _check_not_empty(listing: Listing, rows: Sequence[Row], texts: dict[str, File]) -> None:
    """Refuse metadata without rows where nothing else has captions."""
    if listing.metadata and listing.images and not rows and not texts:
        name = listing.metadata[0].name
        raise DataError(f"{name} in {listing.root} has no rows, but for a header: write one for each image.")


def _read_texts(listing: Listing, texts: dict[str, File], splits: Sequence[str], reading: Reading) -> list[Item]:
    """Images of the split to train on, or all, with their text files."""
    images = listing.images
    if TRAIN in splits:
        images = _of_folder(listing, TRAIN)
    return items_of_captions(replace(listing, images=images), texts, reading)


def _of_split(items: Sequence[Item], splits: Sequence[str], listing: Listing, reading: Reading) -> list[Item]:
    """Items of the split to train on, or all; the images of other splits are counted."""
    if not splits:
        return list(items)
    if TRAIN not in splits:
        raise missing_split(listing.root, splits, (TRAIN,))
    for name in splits:
        if name != TRAIN:
            names = [file.name for file in _of_folder(listing, name)]
            reading.leave_out(f"in the split {name}", names)
    return by_split(items, splits, reading).get(TRAIN, [])


def _of_folder(listing: Listing, name: str) -> list[File]:
    return [file for file in listing.images if top_folder(file) == name]


def _table(items: Sequence[Item], columns: Columns) -> Dataset:
    """Items as a data set with the columns that were asked for, and `stamp`."""

    def where(row: int) -> str:
        item = items[row]
        return f" ({item.where}, {item.file.path})"

    values = [item.value for item in items]
    captions = as_captions(values, where)
    files = [item.file for item in items]
    return image_table(files, captions, image_column=columns.image, column=columns.value)


def _note_repeats(listing: Listing, reading: Reading) -> None:
    """Say that folders such as 10_sks, which sd-scripts repeats ten times, are read once."""
    tops = {top_folder(file) for file in listing.images}
    numbered = sorted(name for name in tops if _REPEATS.match(name))
    if numbered:
        reading.notes.append(f"the number in the name of {numbered[0]} is no repetition: every image counts once")
