"""From rows of metadata files to the images that they name."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from .errors import DataError
from .items import FILE_NAME, Columns, Item
from .listing import NO_IMAGE, File, Listing, composed, image_endings, printable, stamp_of
from .metadata import Row, read_metadata
from .reading import Reading


def read_rows(listing: Listing) -> list[Row]:
    """Rows of all metadata files of a folder.

    Raises:
        DataError: Two of them lie in one folder, or one cannot be read.
    """
    rows: list[Row] = []
    by_folder: dict[str, str] = {}
    for file in listing.metadata:
        folder = os.path.dirname(file.name)
        if folder in by_folder:
            names = [by_folder[folder], file.name]
            raise DataError(f"{listing.root} has 2 metadata files in one folder, {names}: keep one of them.")
        by_folder[folder] = file.name
        rows += read_metadata(file)
    return rows


def keys_of(rows: Iterable[Row]) -> list[str]:
    """Columns of metadata rows, in the order in which they appear."""
    keys: dict[str, None] = {}
    for row in rows:
        keys.update(dict.fromkeys(row.values))
    return list(keys)


def items_of_rows(listing: Listing, rows: Sequence[Row], columns: Columns, reading: Reading) -> list[Item]:
    """The images that metadata rows name, in the order of the rows.

    Args:
        listing: Of the folder.
        rows: Of its metadata files.
        columns: Those that are asked for.
        reading: Counts what lies outside of the folder and is no image; gets notes.

    Raises:
        DataError: A column is missing, a row has no file name, or its file is not there.
    """
    _check_columns(rows, columns)
    finder = _Finder(listing)
    items = []
    missing = []
    for row in rows:
        file = finder.find(row, columns.file_key)
        if file is None:
            missing.append(row)
        else:
            value = row.values.get(columns.value)
            items.append(Item(file, value, row.where))
    if missing:
        raise _no_file(listing, missing, columns.file_key)
    good = _images_of(items, listing.root, reading)
    names = sorted({row.file.name for row in rows})
    reading.notes.append(f"images and their captions or labels are those of {', '.join(names[:3])}")
    _note(good, listing.root, reading)
    return good


def unlisted_reason(listing: Listing) -> str:
    """Why images are left out that no metadata file names."""
    names = {os.path.basename(file.name) for file in listing.metadata}
    return f"not listed in {' or '.join(sorted(names))}"


def _check_columns(rows: Sequence[Row], columns: Columns) -> None:
    """Refuse metadata that lacks the columns that are asked for."""
    keys = keys_of(rows)
    shown = []
    for key in keys:
        name = key.removesuffix(f"_{FILE_NAME}")
        shown.append("image" if name == FILE_NAME else name)
    if columns.file_key not in keys:
        if shown == keys:
            raise DataError(f"{rows[0].file.name} has the columns {keys}, but no {FILE_NAME}. {columns.hint}")
        raise columns.missing("image_column", shown)
    if columns.value not in keys:
        raise columns.missing(columns.flag, shown)


def _images_of(items: Iterable[Item], root: str, reading: Reading) -> list[Item]:
    """The items that are images; others that lie outside of the folder are counted here, as it does not list them."""
    endings = image_endings()
    good = []
    for item in items:
        file = item.file
        if not file.empty and (file.ending in endings or _is_image(file.path)):
            good.append(item)
        elif not _is_inside(file, root):
            reading.leave_out(NO_IMAGE, [file.path])
    return good


def _note(items: Sequence[Item], root: str, reading: Reading) -> None:
    """Note what a user may not expect of the images."""
    counts = Counter(item.file.path for item in items)
    repeated = [path for path, count in counts.items() if count > 1]
    if repeated:
        reading.notes.append(f"{len(repeated)} images are listed more than once: every row is used")
    outside = [item.file.path for item in items if not _is_inside(item.file, root)]
    if outside:
        reading.notes.append(f"{len(outside)} images lie outside of the folder, for example {outside[0]}")


def _is_inside(file: File, root: str) -> bool:
    return file.path.startswith(f"{root.rstrip('/')}/")


def _is_image(path: str) -> bool:
    """Whether Pillow knows the content of a file whose name does not say it; nothing is decoded."""
    try:
        with Image.open(path):
            return True
    except Exception:
        # Pillow's formats raise errors of any kind on content that is not theirs.
        return False


def _name_of(row: Row, key: str) -> str:
    """The file name of a row."""
    name = row.values.get(key)
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{row.where} has no {key}: got {name!r}.")
    if "://" in name:
        raise DataError(f"{row.where}: {key} {name!r} is an address: download the file, and give its name.")
    return name


class _Finder:
    """Finds the files that metadata rows name."""

    def __init__(self, listing: Listing) -> None:
        self._root = listing.root
        listed = (*listing.images, *listing.others, *listing.captions)
        self._files = {file.path: file for file in listed}
        self._normal: dict[str, File] | None = None

    def find(self, row: Row, key: str) -> File | None:
        """The file of a row, or None where it is not there.

        Args:
            row: Of a metadata file, to whose folder names are relative.
            key: Column that holds the file name.

        Raises:
            DataError: The row has no file name, or names an address.
        """
        name = _name_of(row, key)
        folder = os.path.dirname(row.file.path)
        path = os.path.normpath(os.path.join(folder, name))
        # Windows writes backslashes.
        portable = os.path.normpath(os.path.join(folder, name.replace("\\", "/")))
        return self._at(path) or self._at(portable) or self._like(portable)

    def _at(self, path: str) -> File | None:
        """The file of a path: listed, hidden, or outside of the folder."""
        if path in self._files:
            return self._files[path]
        if printable(path) != path:
            return None
        try:
            if not Path(path).is_file():
                return None
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        # An absolute name may reach the folder by another link than the user does.
        inside = os.path.relpath(os.path.realpath(path), os.path.realpath(self._root))
        linked = os.path.join(self._root, inside)
        return self._files.get(linked) or File(path, inside, stamp_of(status))

    def _like(self, path: str) -> File | None:
        """The file whose name has the same letters in another Unicode form, as a Mac writes them."""
        if self._normal is None:
            self._normal = {}
            for known, file in self._files.items():
                self._normal[composed(known)] = file
        return self._normal.get(composed(path))


def _no_file(listing: Listing, rows: Sequence[Row], key: str) -> DataError:
    """The error for rows whose file is not there."""
    row = rows[0]
    name = row.values[key]
    words = [f"{row.where}: there is no file {name!r}."]
    base = _base(name)
    near = [file.name for file in listing.images if _base(file.name) == base]
    if near:
        words.append(f"There is {near[0]}: file names are relative to the metadata file.")
    if len(rows) > 1:
        words.append(f"{len(rows)} rows name files that are not there.")
    words.append("Add the files, or remove the rows from the metadata.")
    return DataError(" ".join(words))


def _base(name: str) -> str:
    """Last part of a name, in lower case."""
    portable = name.replace("\\", "/")
    return os.path.basename(portable).lower()
