"""Read a folder of images: captions or labels of a metadata file, caption files, or one folder per class."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .caption_files import caption_files, items_of_captions
from .caption_text import as_captions
from .images import DataError
from .items import Columns, Item, image_table, leave_out_unused
from .listing import File, Listing
from .metadata_items import items_of_rows, keys_of, read_rows
from .report import Reading
from .splits import WHOLE, find_splits, top_folder


if TYPE_CHECKING:
    from datasets import Dataset

OUTSIDE_SPLITS = "outside of the splits"
_REPEATS = re.compile(r"\d+_")


def read_captioned(listing: Listing, columns: Columns, reading: Reading) -> dict[str, Dataset] | None:
    """Images with captions, by split; None where the folder has no captions.

    Raises:
        DataError: Captions are missing, come from two sources, or belong to files that are not there.
    """
    rows = read_rows(listing)
    texts = caption_files(listing)
    keys = keys_of(rows)
    if columns.value in keys and texts:
        raise DataError(
            f"{listing.root} has captions in {rows[0].file.name} (column {columns.value!r}) and in {len(texts)} text "
            "files beside the images: keep one of the two."
        )
    if texts:
        items = items_of_captions(listing, texts, reading)
        unlisted = "without a caption"
        if rows:
            reading.notes.append(f"{rows[0].file.name} has no column {columns.value!r} and is not read")
    elif _names_images(listing, keys, columns):
        items = items_of_rows(listing, rows, columns, reading)
        unlisted = _not_listed(listing)
    else:
        return None
    groups = _split_items(listing, items, reading)
    leave_out_unused(listing, [*texts.values(), *(item.file for item in items)], reading, unlisted)
    _note_repeats(listing, reading)
    return {name: _captioned(group, columns) for name, group in groups.items()}


def read_labelled(listing: Listing, columns: Columns, reading: Reading) -> dict[str, Dataset] | None:
    """Images with labels of a metadata file, or of one folder per class, by split; None where there are none.

    Raises:
        DataError: A class folder holds no image, or metadata names files that are not there.
    """
    rows = read_rows(listing)
    keys = keys_of(rows)
    if columns.value in keys and columns.file_key in keys:
        items = items_of_rows(listing, rows, columns, reading)
        groups = _split_items(listing, items, reading)
        leave_out_unused(listing, [item.file for item in items], reading, _not_listed(listing))
        return {name: _labelled(group, columns) for name, group in groups.items()}
    folders = {top_folder(file) for file in listing.images} - {""}
    if not folders or (listing.tables and len(folders) < 2):
        return None
    if columns.value != "label":
        raise columns.missing(columns.flag, dict.fromkeys(["image", "label", *keys]))
    if rows:
        reading.notes.append(f"{rows[0].file.name} has no column {columns.value!r}: the folders are the classes")
    return read_class_folders(listing, reading)


def read_class_folders(listing: Listing, reading: Reading) -> dict[str, Dataset]:
    """Images in one folder per class, in alphabetical order, as torchvision's ImageFolder; by split.

    Raises:
        DataError: A split has no class folder, or a class folder no image.
    """
    splits = find_splits(listing, classes=True)
    parts = {name: f"{name}/" for name in splits} or {WHOLE: ""}
    data = {}
    used: list[File] = []
    for name, prefix in parts.items():
        found = _by_class(listing, prefix)
        files = [file for group in found.values() for file in group]
        labels = [label for label, group in enumerate(found.values()) for _ in group]
        used += files
        data[name] = _with_classes(image_table(files, "image", {"label": labels}), list(found))
    leave_out_unused(listing, used, reading, "outside of the class folders")
    return data


def _by_class(listing: Listing, prefix: str) -> dict[str, list[File]]:
    """Images by class below a folder; every class has one."""
    below = [name[len(prefix) :] for name in listing.folders if name.startswith(prefix)]
    found: dict[str, list[File]] = {name: [] for name in sorted(below) if "/" not in name}
    if not found:
        where = f"{listing.root}/{prefix}".rstrip("/")
        raise DataError(f"{where} has no folders: it must hold one folder of images per class.")
    for file in listing.images:
        name, slash, _ = file.name[len(prefix) :].partition("/")
        if slash and file.name.startswith(prefix):
            found[name].append(file)
    empty = [name for name, files in found.items() if not files]
    if empty:
        held = [file.name for file in listing.others if file.name[len(prefix) :].split("/")[0] in empty]
        but = f", only files such as {held[0]}" if held else ""
        raise DataError(
            f"the class folders {empty[:5]} of {listing.root} hold no image{but}: fill them or remove them."
        )
    return found


def _names_images(listing: Listing, keys: list[str], columns: Columns) -> bool:
    """Whether metadata belongs to images: it names them, or they lie beside it."""
    return bool(keys) and (columns.file_key in keys or bool(listing.images))


def _not_listed(listing: Listing) -> str:
    names = sorted({file.name.rpartition("/")[2] for file in listing.metadata})
    return f"not listed in {' or '.join(names)}"


def _split_items(listing: Listing, items: list[Item], reading: Reading) -> dict[str, list[Item]]:
    """Items by split; what lies outside of all splits is counted."""
    splits = find_splits(listing, classes=False)
    if not splits:
        return {WHOLE: items}
    groups: dict[str, list[Item]] = {name: [] for name in splits}
    outside = []
    for item in items:
        group = groups.get(top_folder(item.file), outside)
        group.append(item)
    reading.leave_out(OUTSIDE_SPLITS, [item.file.name for item in outside])
    return {name: group for name, group in groups.items() if group}


def _captioned(items: list[Item], columns: Columns) -> Dataset:
    """Items as a data set with the columns that were asked for, and `stamp`."""

    def where(row: int) -> str:
        item = items[row]
        return f" ({item.where}, {item.file.path})"

    captions = as_captions((item.value for item in items), where)
    return image_table([item.file for item in items], columns.image, {columns.value: captions})


def _labelled(items: list[Item], columns: Columns) -> Dataset:
    """Items as a data set with the columns that were asked for, and `stamp`; labels of several types become text."""
    values: list[Any] = [item.value for item in items]
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1:
        values = [None if value is None else str(value) for value in values]
    return image_table([item.file for item in items], columns.image, {columns.value: values})


def _with_classes(data: Dataset, names: list[str]) -> Dataset:
    from datasets import ClassLabel

    return data.cast_column("label", ClassLabel(names=names))


def _note_repeats(listing: Listing, reading: Reading) -> None:
    """Say that folders such as 10_sks, which sd-scripts repeats ten times, are read once."""
    tops = {top_folder(file) for file in listing.images}
    numbered = sorted(name for name in tops if _REPEATS.match(name))
    if numbered:
        reading.notes.append(f"the number in the name of {numbered[0]} is no repetition: every image counts once")
