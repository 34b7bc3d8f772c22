"""Read data that lies in one file or a few: parquet and npz."""

from __future__ import annotations

import glob
import json
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DataError
from .rows import split_by
from .splits import WHOLE
from .table_paths import with_full_paths


if TYPE_CHECKING:
    from datasets import Dataset

# Parquet files that are larger together are not held in memory.
IN_MEMORY = 2**29


def read_parquet(
    files: Sequence[str | Path],
    label_column: str | None = None,
    cache_dir: str | None = None,
    *,
    image_column: str | None = None,
) -> Dataset:
    """Parquet files together; class names may be in the schema's metadata, under `names`.

    Args:
        files: Of one schema.
        label_column: Column whose classes have these names.
        cache_dir: Where `datasets` keeps what it converts.
        image_column: Column of images; file names in it are relative to the table's own folder.

    Raises:
        DataError: One is not there, or cannot be read.
    """
    import datasets
    import pyarrow.parquet

    names = [str(file) for file in files]
    for name in names:
        if not Path(name).is_file():
            raise DataError(f"there is no file {name}.")
    try:
        size = sum(Path(name).stat().st_size for name in names)
        if size <= IN_MEMORY:
            # `load_dataset` would copy the files into a cache in the home folder. A file alone keeps its folder's name
            # from becoming a column.
            parts = []
            for name in names:
                part = datasets.Dataset(pyarrow.parquet.ParquetFile(name).read())  # type: ignore[arg-type]
                parts.append(with_full_paths(part, image_column, os.path.dirname(name)))
            data: Any = datasets.concatenate_datasets(parts)
        else:
            escaped = [glob.escape(name) for name in names]
            data = datasets.load_dataset("parquet", data_files=escaped, split="train", cache_dir=cache_dir)
            data = with_full_paths(data, image_column, os.path.dirname(names[0]))
        schema = pyarrow.parquet.read_schema(names[0])
    except Exception as error:
        # `datasets`, pyarrow and the file system have errors of their own; all mean the same to a user.
        raise DataError(f"the parquet files {names[:3]} cannot be read: {error}") from error
    metadata = schema.metadata or {}
    classes = _class_names(metadata.get(b"names", b"").decode())
    if classes and label_column in data.column_names:
        data = data.cast_column(label_column, datasets.ClassLabel(names=classes))
    return data


def has_columns(file: str, names: Iterable[str]) -> bool:
    """Whether a parquet file has all these columns; False for one that cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(file)
    except (OSError, ValueError, pyarrow.ArrowException):
        return False
    return set(names) <= set(schema.names)


def read_npz(path: Path) -> dict[str, Dataset]:
    """Images of an .npz with `x` (N, H, W) or (N, H, W, 3) uint8, `y`, `classes`, and `test` (bool) if it has a split.

    Raises:
        DataError: The file is not there, or an array is missing or has another shape.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as .npz: {error}.") from error
    missing = [name for name in ("x", "y", "classes") if name not in arrays]
    if missing:
        raise DataError(f"{path} has no {missing}: it needs x, y and classes, and test for a split.")
    x = arrays["x"]
    y = arrays["y"]
    is_image = x.ndim == 3 or (x.ndim == 4 and x.shape[3] == 3)
    if x.dtype != np.uint8 or not is_image or y.shape != x.shape[:1]:
        raise DataError(
            f"{path}: x is {x.dtype} {x.shape} and y {y.shape}; x must be uint8 (N, H, W) or (N, H, W, 3), y (N,)."
        )
    classes = [str(name) for name in arrays["classes"].reshape(-1)]
    _check_labels(path, y, classes)
    data = _labelled(list(x), y.tolist(), classes)
    if "test" not in arrays:
        return {WHOLE: data}
    held_out = arrays["test"]
    if held_out.shape != y.shape:
        raise DataError(f"{path}: test has the shape {held_out.shape}; it must have one value per image, {y.shape}.")
    train, test = split_by(data, held_out.astype(bool))
    return {"train": train, "test": test}


def _check_labels(path: Path, labels: np.ndarray, classes: Sequence[str]) -> None:
    """Refuse classes of one name, and labels that are no number of a class."""
    if len(set(classes)) < len(classes):
        raise DataError(f"{path}: two of the classes have the same name: {sorted(classes)[:10]}. Rename one.")
    known = np.isin(labels, np.arange(len(classes)))
    if not known.all():
        wrong = labels[~known][:5].tolist()
        raise DataError(f"{path}: y holds {wrong}; with {len(classes)} classes it must be 0 to {len(classes) - 1}.")


def _labelled(images: list[Any], labels: list[int], classes: list[str]) -> Dataset:
    """A data set of images as (H, W[, 3]) arrays, and their classes."""
    import datasets

    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=classes),
    )
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def _class_names(text: str) -> list[str]:
    """Class names in a schema's metadata: a JSON list, or words with commas between them."""
    if text.startswith("["):
        return list(map(str, json.loads(text)))
    return text.split(",") if text else []
