"""Read a folder of images with labels: one folder per class, or a metadata file with a column of labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from .errors import DataError
from .items import Columns, Item, by_split, image_table, leave_out_unused
from .label_values import clean_label
from .listing import File, Listing, composed
from .metadata_items import items_of_rows, keys_of, read_rows, unlisted_reason
from .reading import Reading
from .splits import TRAIN, WHOLE, find_splits, is_like_split, note_lookalikes, split_of_table, top_folder
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
        splits = find_splits(listing, classes=False)
        groups = by_split(items, splits, reading) if splits else {WHOLE: items}
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
        _check_names(listing, found)
        _check_depth(listing, prefix, found, reading)
        files = []
        for group in found.values():
            files += group
        used += files
        data[name] = _class_table(files, found)
    note_lookalikes(used, splits, reading)
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


def _check_names(listing: Listing, found: dict[str, list[File]]) -> None:
    """Refuse class folders whose names look the same."""
    names: dict[str, str] = {}
    for name in found:
        if composed(name) in names:
            raise DataError(
                f"two class folders of {listing.root} are called {name!r}, in two forms of Unicode: join them."
            )
        names[composed(name)] = name


def _check_depth(
    listing: Listing,
    prefix: str,
    found: dict[str, list[File]],
    reading: Reading,
) -> None:
    """Refuse folders that hold the class folders instead of being classes; note what lies deeper in a class.

    Raises:
        DataError: One folder alone holds no image but in folders, or splits have other names than those of splits.
    """
    inside: dict[str, set[str]] = {}
    deeper = []
    flat = False
    for name, files in found.items():
        inside[name] = set()
        for file in files:
            rest = file.name.removeprefix(f"{prefix}{name}/")
            folder, slash, _ = rest.partition("/")
            if slash:
                inside[name].add(folder)
                deeper.append(file.name)
            else:
                flat = True
    if not deeper:
        return
    shared = set.intersection(*inside.values())
    if not flat and len(shared) > 1:
        if len(found) == 1:
            [wrapper] = found
            where = f"{listing.root}/{prefix}{wrapper}"
            raise DataError(f"{where} holds no image but in {sorted(shared)[:5]}: give {where} as the data.")
        if any(map(is_like_split, found)):
            raise DataError(
                f"the folders {list(found)[:5]} of {listing.root} hold the same folders {sorted(shared)[:5]}, as "
                "splits do: call them train and validation, val or test."
            )
    reading.notes.append(f"images deeper in a class folder are of that class, for example {deeper[0]}")


def _class_table(files: Sequence[File], found: dict[str, list[File]]) -> Dataset:
    from datasets import ClassLabel

    labels: list[int] = []
    for label, group in enumerate(found.values()):
        labels += [label] * len(group)
    names = list(found)
    return image_table(
        files,
        values=labels,
        image_column="image",
        column="label",
        feature=ClassLabel(names=names),
    )


def _table(items: Sequence[Item], columns: Columns) -> Dataset:
    """Items as a data set with the columns that were asked for, and `stamp`; labels of several types become text."""
    files = [item.file for item in items]
    values: list[Any] = [clean_label(item.value) for item in items]
    kinds = {type(value) for value in values}
    kinds.discard(type(None))
    if len(kinds) > 1 and kinds != {int, float}:
        for row, value in enumerate(values):
            if value is not None:
                values[row] = str(value)
    return image_table(files, values, image_column=columns.image, column=columns.value)
