"""Tables that name image files instead of holding images: names are relative to the table, as in metadata files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from datasets import Dataset


def with_full_paths(
    data: Dataset,
    column: str | None,
    folder: str,
) -> Dataset:
    """The table with a column of file names as absolute paths; other tables stay as they are.

    Args:
        data: Any table.
        column: The one of images, if it is known.
        folder: Of the table's file.
    """
    names = _file_names(data, column)
    if column is None or not any(names):
        return data
    paths = [_full_path(name, folder) for name in names]
    return data.remove_columns(column).add_column(column, paths)  # type: ignore[call-arg]


def named_files(data: Dataset, column: str) -> set[str]:
    """Paths of the files that a table names as its images."""
    return {name for name in _file_names(data, column) if name}


def _file_names(data: Dataset, column: str | None) -> list[Any]:
    """Values of a column of text; nothing where it is of another type, or not there."""
    from datasets import Value

    if column is None or column not in data.column_names:
        return []
    feature = data.features[column]
    if not isinstance(feature, Value) or feature.dtype not in ("string", "large_string"):
        return []
    return data[column][:]


def _full_path(name: str | None, folder: str) -> str | None:
    """The path of a file beside the table; a name that is only there from the working directory stays."""
    if not name or "://" in name:
        return name
    path = os.path.join(folder, name)
    path = os.path.abspath(path)
    if os.path.exists(path):
        return path
    return name
