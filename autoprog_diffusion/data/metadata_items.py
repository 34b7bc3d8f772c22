"""From rows of metadata files to the images that they name."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from .errors import DataError
from .items import FILE_NAME, Columns, Item
from .listing import NO_IMAGE, File, Listing, image_endings, stamp_of
from .metadata import Row, read_metadata
from .report import Reading


def read_rows(listing: Listing) -> list[Row]:
    """Rows of all metadata files of a folder.

    Raises:
        DataError: Two of them lie in one folder, or one cannot be read.
    """
    folders = Counter(os.path.dirname(file.name) for file in listing.metadata)
    for folder, count in folders.items():
        if count > 1:
            names = [file.name for file in listing.metadata if os.path.dirname(file.name) == folder]
            raise DataError(f"{listing.root} has {count} metadata files in one folder, {names}: keep one of them.")
    return [row for file in listing.metadata for row in read_metadata(file)]


def keys_of(rows: Iterable[Row]) -> list[str]:
    """Columns of metadata rows, in the order in which they appear."""
    return list(dict.fromkeys(key for row in rows for key in row.values))


def items_of_rows(listing: Listing, rows: Sequence[Row], columns: Columns, reading: Reading) -> list[Item]:
    """The images that metadata rows name, in the order of the rows.

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
            items.append(Item(file, row.values.get(columns.value), row.where))
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
    shown = ["image" if key == FILE_NAME else key.removesuffix(f"_{FILE_NAME}") for key in keys]
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


class _Finder:
    """Finds the files that metadata rows name."""

    def __init__(self, listing: Listing) -> None:
        self._root = listing.root
        listed = (*listing.images, *listing.others, *listing.captions)
        self._files = {file.path: file for file in listed}
        self._normal: dict[str, File] | None = None

    def find(self, row: Row, key: str) -> File | None:
        """The file of a row, or None where it is not there.

        Raises:
            DataError: The row has no file name, or names an address.
        """
        name = row.values.get(key)
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{row.where} has no {key}: got {name!r}.")
        if "://" in name:
            raise DataError(f"{row.where}: {key} {name!r} is an address: download the file, and give its name.")
        folder = os.path.dirname(row.file.path)
        path = os.path.normpath(os.path.join(folder, name))
        # Windows writes backslashes.
        portable = os.path.normpath(os.path.join(folder, name.replace("\\", "/")))
        return self._at(path) or self._at(portable) or self._like(portable)

    def _at(self, path: str) -> File | None:
        """The file of a path: listed, hidden, or outside of the folder."""
        if path in self._files:
            return self._files[path]
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
            self._normal = {unicodedata.normalize("NFC", path): file for path, file in self._files.items()}
        return self._normal.get(unicodedata.normalize("NFC", path))


def _no_file(listing: Listing, rows: Sequence[Row], key: str) -> DataError:
    """The error for rows whose file is not there."""
    row = rows[0]
    name = row.values[key]
    base = os.path.basename(name.replace("\\", "/")).lower()
    near = [file.name for file in listing.images if os.path.basename(file.name).lower() == base]
    hint = f" There is {near[0]}: file names are relative to the metadata file." if near else ""
    more = f" {len(rows)} rows name files that are not there." if len(rows) > 1 else ""
    return DataError(
        f"{row.where}: there is no file {name!r}.{hint}{more} Add the files, or remove the rows from the metadata."
    )
