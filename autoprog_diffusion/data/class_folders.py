"""Read a folder of images with labels: one folder per class, or a metadata file with a column of labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from .errors import DataError
from .items import Columns, Item, image_table, leave_out_unused
from .listing import File, Listing
from .metadata_items import items_of_rows, keys_of, read_rows, unlisted_reason
from .report import Reading
from .splits import TRAIN, WHOLE, find_splits, split_of_table, top_folder
from .tables import has_columns


if TYPE_CHECKING:
    from datasets import Dataset

OUTSIDE = "outside of the class folders"


def read_labelled(listing: Listing, columns: Columns, reading: Reading) -> dict[str, Dataset] | None:
    """Images with their labels, by split; None where the folder has neither labels nor class folders.

    Args:
        listing: Of the folder.
        columns: Those that are asked for.
        reading: Counts what is left out.

    Raises:
        DataError: A class folder holds no image, or metadata names files that are not there.
    """
    rows = read_rows(listing)
    keys = keys_of(rows)
    if columns.value in keys and columns.file_key in keys:
        items = items_of_rows(listing, rows, columns, reading)
        groups = _by_split(listing, items, reading)
        used = [item.file for item in items]
        leave_out_unused(listing, used, reading, unlisted_reason(listing))
        tables = {}
        for name, group in groups.items():
            tables[name] = _table(group, columns)
        return tables
    folders = {top_folder(file) for file in listing.images}
    folders.discard("")
    if not folders or _are_tables_first(listing, folders, columns):
        return None
    if columns.value != "label":
        there = dict.fromkeys(["image", "label", *keys])
        raise columns.missing(columns.flag, there)
    if rows:
        reading.notes.append(f"{rows[0].file.name} has no column {columns.value!r}: the folders are the classes")
    return read_class_folders(listing, reading)


def _are_tables_first(listing: Listing, folders: Collection[str], columns: Columns) -> bool:
    """Whether pictures lie beside tables, and not a stray table beside pictures."""
    if not listing.tables or not has_columns(listing.tables[0].path, (columns.image, columns.value)):
        return False
    in_splits = any(split_of_table(file) != WHOLE for file in listing.tables)
    return in_splits or len(folders) < 2


def read_class_folders(listing: Listing, reading: Reading) -> dict[str, Dataset]:
    """Images in one folder per class, in alphabetical order, as torchvision's ImageFolder; by split.

    Args:
        listing: Of the folder.
        reading: Counts what is left out.

    Raises:
        DataError: There is no class folder, or one holds no image.
    """
    splits = find_splits(listing, classes=True)
    data = {}
    used: list[File] = []
    for name in splits or (WHOLE,):
        prefix = f"{name}/" if splits else ""
        found = _by_class(listing, prefix)
        if not found:
            unlabelled = _without_classes(listing, prefix)
            names = [file.name for file in unlabelled]
            reading.leave_out(f"in {name}, which has no class folders", names)
            used += unlabelled
            continue
        _check_filled(listing, prefix, found)
        files = []
        for group in found.values():
            files += group
        used += files
        data[name] = _class_table(files, found)
    leave_out_unused(listing, used, reading, OUTSIDE)
    return data


def _by_class(listing: Listing, prefix: str) -> dict[str, list[File]]:
    """Images by class below a folder."""
    found: dict[str, list[File]] = {}
    for folder in sorted(listing.folders):
        name = folder.removeprefix(prefix)
        if folder.startswith(prefix) and "/" not in name:
            found[name] = []
    for file in listing.images:
        if not file.name.startswith(prefix):
            continue
        inside = file.name.removeprefix(prefix)
        name, slash, _ = inside.partition("/")
        if slash:
            found[name].append(file)
    return found


def _without_classes(listing: Listing, prefix: str) -> list[File]:
    """The images of a split for validation or tests that has no class folders."""
    if prefix in ("", f"{TRAIN}/"):
        where = f"{listing.root}/{prefix}".rstrip("/")
        raise DataError(f"{where} has no folders: it must hold one folder of images per class.")
    return [file for file in listing.images if file.name.startswith(prefix)]


def _check_filled(listing: Listing, prefix: str, found: dict[str, list[File]]) -> None:
    """Refuse class folders without an image."""
    empty = [name for name, files in found.items() if not files]
    if not empty:
        return
    but = ""
    inside = tuple(f"{prefix}{name}/" for name in empty)
    for file in listing.others:
        if file.name.startswith(inside):
            but = f", only files such as {file.name}"
            break
    raise DataError(f"the class folders {empty[:5]} of {listing.root} hold no image{but}: fill them or remove them.")


def _class_table(files: Sequence[File], found: dict[str, list[File]]) -> Dataset:
    from datasets import ClassLabel

    labels: list[int] = []
    for label, group in enumerate(found.values()):
        labels += [label] * len(group)
    names = list(found)
    return image_table(files, labels, image_column="image", column="label", feature=ClassLabel(names=names))


def _by_split(listing: Listing, items: list[Item], reading: Reading) -> dict[str, list[Item]]:
    """Items by split; what lies outside of all splits is counted."""
    splits = find_splits(listing, classes=False)
    if not splits:
        return {WHOLE: items}
    groups: dict[str, list[Item]] = {}
    outside = []
    for item in items:
        top = top_folder(item.file)
        if top in splits:
            groups.setdefault(top, []).append(item)
        else:
            outside.append(item.file.name)
    reading.leave_out("outside of the splits", outside)
    return groups


def _table(items: Sequence[Item], columns: Columns) -> Dataset:
    """Items as a data set with the columns that were asked for, and `stamp`; labels of several types become text."""
    files = [item.file for item in items]
    values: list[Any] = [item.value for item in items]
    kinds = {type(value) for value in values}
    kinds.discard(type(None))
    if len(kinds) > 1:
        for row, value in enumerate(values):
            if value is not None:
                values[row] = str(value)
    return image_table(files, values, image_column=columns.image, column=columns.value)
