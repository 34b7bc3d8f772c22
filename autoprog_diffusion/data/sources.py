"""Read a data set: class folders, image folders, parquet and npz files, saved data sets, and names on the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .captioned_folder import read_captioned
from .class_folders import read_labelled
from .errors import DataError
from .items import Columns
from .listing import File, Listing, list_files, printable
from .reading import Reading
from .report import DataReport
from .splits import TRAIN, WHOLE, group_tables, missing_split, note_tables
from .table_paths import named_files
from .tables import has_columns, read_npz, read_parquet


if TYPE_CHECKING:
    from datasets import Dataset

Splits = dict[str, "Dataset"]
TABLES = (".npz", ".parquet")
ARCHIVES = (".tar", ".tgz", ".gz", ".zip", ".rar", ".7z")
_COLUMN_OF = {"image_column": "image", "caption_column": "text", "label_column": "label"}
_HINTS = {
    "caption_column": (
        "Captions of an image folder are in a metadata.jsonl ({'file_name': ..., 'text': ...} a line), in a "
        "metadata.csv, or in a text file beside each image, such as a.txt for a.png."
    ),
    "label_column": "An image folder needs one sub-folder per class, at least two of them, and no metadata file.",
}


def read_splits(name: str, *, cache_dir: str | None, reading: Reading, **columns: str) -> Splits:
    """All splits of a data set, with the columns that it has.

    Args:
        name: An .npz or .parquet file; a folder of images, of parquet files, or one that `save_to_disk` wrote; or a
            name on the Hub.
        cache_dir: Where `datasets` keeps what it converts.
        reading: Counts what of a folder is left out.
        columns: As `choose_columns` takes them.

    Raises:
        DataError: Nothing is there, or it cannot be read.
    """
    name = os.path.expanduser(name)
    path = Path(name)
    if path.is_dir() and not is_saved(path):
        return _read_folder(list_files(path), cache_dir, reading, columns)
    if path.suffix.lower() == ".npz":
        return read_npz(path)
    if path.suffix.lower() == ".parquet":
        return {WHOLE: _read_parquet([path], cache_dir, columns)}
    return load_by_name(name, cache_dir=cache_dir)


def read_named(
    name: str, config_name: str | None, *, cache_dir: str | None, reading: Reading, **columns: str
) -> Splits:
    """All splits of a data set that `datasets` may know by name; a folder of images or parquet files is listed here.

    Args:
        name: On the Hub, or of a folder.
        config_name: Configuration of the data set.
        cache_dir: Where `datasets` keeps what it downloads and converts.
        reading: Counts what of a folder is left out.
        columns: As `choose_columns` takes them.

    Raises:
        DataError: Nothing is there, or it cannot be read.
    """
    name = os.path.expanduser(name)
    path = Path(name)
    if path.is_file() and path.suffix.lower() in TABLES:
        return read_splits(name, cache_dir=cache_dir, reading=reading, **columns)
    if path.is_dir() and not is_saved(path) and config_name is None and not _has_card(path):
        listing = list_files(path)
        if listing.images or listing.tables or listing.metadata:
            return _read_folder(listing, cache_dir, reading, columns)
    return load_by_name(name, config_name, cache_dir)


def load_by_name(name: str, config_name: str | None = None, cache_dir: str | None = None) -> Splits:
    """All splits of a data set that `datasets` loads.

    Args:
        name: On the Hub, or of a folder that it saved.
        config_name: Configuration of the data set.
        cache_dir: Where it keeps what it downloads and converts.

    Raises:
        DataError: It cannot be loaded.
    """
    import datasets

    try:
        if is_saved(Path(name)):
            loaded: Any = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, config_name, cache_dir=cache_dir)
    except Exception as error:
        # `datasets`, its builders, pyarrow and the file system have errors of their own; all mean the same to a user.
        raise DataError(f"the data set {name} cannot be loaded: {error}") from error
    if isinstance(loaded, datasets.Dataset):
        return {WHOLE: loaded}
    return dict(loaded)


def is_saved(path: Path) -> bool:
    """Whether a folder holds a data set that `save_to_disk` wrote."""
    return any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))


def choose_split(splits: Splits, names: tuple[str, ...], source: str) -> Dataset:
    """The first of the named splits; data without splits is taken whole.

    Raises:
        DataError: It has none of them.
    """
    for name in (*names, WHOLE):
        if name in splits:
            return splits[name]
    raise missing_split(source, splits, names)


def count_other_splits(splits: Splits, used: Iterable[Dataset | None], reading: Reading) -> None:
    """Count the rows of the splits that are not used."""
    kept = {id(data) for data in used}
    for name, data in splits.items():
        if id(data) not in kept:
            reading.leave_out(f"in the split {name}", count=len(data))


def read_training_set(
    folder: str | None,
    name: str | None,
    config_name: str | None,
    *,
    cache_dir: str | None,
    default: Callable[[], Dataset],
    report: DataReport | None = None,
    **columns: str,
) -> tuple[Dataset, Reading]:
    """The training split of a folder, of a named data set, or where neither is given of the default data.

    Args:
        folder: As `read_splits` takes it.
        name: Hub name or folder of a `datasets` data set, instead of `folder`.
        config_name: Configuration of that data set.
        cache_dir: Where `datasets` keeps what it downloads and converts.
        default: Makes the default data.
        report: Gets the reading.
        columns: As `choose_columns` takes them.

    Returns:
        The data, and what was found and left out.

    Raises:
        DataError: Both are given, nothing is there, it has no split for training, or lacks a column.
    """
    if folder and name:
        raise DataError("--train_data_dir and --dataset_name are both given: give one.")
    source = folder or name
    reading = (report or DataReport()).add("trained on", source or "the default data")
    if not source:
        data = default_data(default)
        reading.used = len(data)
        return data, reading
    if not folder:
        splits = read_named(source, config_name, cache_dir=cache_dir, reading=reading, **columns)
    elif os.path.isdir(os.path.expanduser(folder)) or Path(folder).suffix.lower() in TABLES:
        splits = read_splits(folder, cache_dir=cache_dir, reading=reading, **columns)
    else:
        raise DataError(f"--train_data_dir {folder} is not a folder with files in it, nor a .parquet or .npz file.")
    chosen = choose_split(splits, (TRAIN,), source)
    count_other_splits(splits, [chosen], reading)
    reading.used = len(chosen)
    return choose_columns(chosen, **columns), reading


def choose_columns(data: Dataset, **columns: str) -> Dataset:
    """Only the chosen columns, renamed.

    Args:
        data: Any data.
        columns: Name of the column that becomes `image` (as `image_column`), and `text` or `label` likewise.

    Raises:
        DataError: One is not there; the message lists those there are.
    """
    from datasets import Image as ImageFeature

    wanted = _wanted(columns)
    for flag, name in columns.items():
        if name not in data.column_names:
            raise wanted.missing(flag, data.column_names)
    new_names = {name: _COLUMN_OF[flag] for flag, name in columns.items()}
    data = data.select_columns(list(new_names))
    data = data.rename_columns(new_names)
    try:
        return data.cast_column("image", ImageFeature())
    except Exception as error:
        # pyarrow's error says nothing of the flag.
        raise DataError(
            f"--image_column {columns['image_column']!r} holds no images but {data.features['image']}: {error}"
        ) from error


def default_data(make: Callable[[], Any]) -> Any:
    """Data rendered from packages.

    Raises:
        DataError: A package is missing, or the size is not allowed.
    """
    try:
        return make()
    except (ImportError, ValueError) as error:
        raise DataError(f"the default data cannot be made: {error}") from error


def check_batch(count: int, per_step: int) -> None:
    """Refuse a training set that does not fill one batch on every process.

    Raises:
        DataError: It has fewer images than that.
    """
    if count < per_step:
        raise DataError(
            f"the training set has {count} images, fewer than one batch of {per_step} over all processes: lower "
            "--train_batch_size or add images."
        )


def _wanted(columns: dict[str, str]) -> Columns:
    """The image column and the last one of the flags."""
    flag = list(columns)[-1]
    return Columns(
        columns["image_column"],
        value=columns[flag],
        flag=flag,
        hint=_HINTS[flag],
    )


def _read_folder(listing: Listing, cache_dir: str | None, reading: Reading, columns: dict[str, str]) -> Splits:
    """Images with captions or classes where there are some, else parquet files."""
    wanted = _wanted(columns)
    if listing.empty and wanted.flag != "label_column":
        raise DataError(f"{printable(listing.root)} is not a folder with files in it.")
    splits = _read_images(listing, wanted, reading)
    if splits is not None:
        return splits
    tables = listing.tables or [file for file in listing.metadata if file.ending == ".parquet"]
    # A stray file beside images is not the data.
    if tables and (not listing.images or has_columns(tables[0].path, columns.values())):
        return _read_tables(listing, tables, cache_dir, reading, columns)
    if not listing.images and not listing.empty:
        held = [file.name for file in (*listing.others, *listing.captions, *listing.metadata)]
        held += [name for names in listing.skipped.values() for name in names]
        archives = [name for name in held if name.lower().endswith(ARCHIVES)]
        unpack = f" Unpack {archives[0]} first." if archives else ""
        raise DataError(f"{listing.root} holds no image and no parquet file; it holds for example {held[:5]}.{unpack}")
    if wanted.flag == "label_column":
        raise DataError(f"{listing.root} has no folders: it must hold one folder of images per class.")
    unread = [file.name for file in (*listing.others, *listing.captions)]
    also = f" Files that are not read: {unread[:5]}." if unread else ""
    raise DataError(f"{wanted.missing(wanted.flag, ['image'])}{also}")


def _read_images(listing: Listing, wanted: Columns, reading: Reading) -> Splits | None:
    """Images that have captions or classes, by split; None where there are none."""
    if wanted.flag == "label_column":
        return read_labelled(listing, wanted, reading)
    data = read_captioned(listing, wanted, reading)
    return None if data is None else {WHOLE: data}


def _read_tables(
    listing: Listing, tables: list[File], cache_dir: str | None, reading: Reading, columns: dict[str, str]
) -> Splits:
    """Parquet files of a folder, by split; other files beside them are counted, but for images that these name."""
    groups = group_tables(listing.root, tables)
    note_tables(groups, reading)
    splits = {}
    used = {file.path for file in tables}
    for name, files in groups.items():
        splits[name] = _read_parquet([file.path for file in files], cache_dir, columns)
        used |= named_files(splits[name], columns["image_column"])
    others = [*listing.images, *listing.captions, *listing.others, *listing.metadata]
    reading.leave_out("not a parquet file", [file.name for file in others if file.path not in used])
    for reason, names in listing.skipped.items():
        reading.leave_out(reason, names)
    reading.notes += listing.notes
    return splits


def _read_parquet(files: Sequence[str | Path], cache_dir: str | None, columns: dict[str, str]) -> Dataset:
    return read_parquet(
        files,
        columns.get("label_column"),
        cache_dir,
        image_column=columns["image_column"],
    )


def _has_card(path: Path) -> bool:
    """Whether a folder's README.md tells `datasets` which files belong to which split."""
    try:
        text = (path / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return text.startswith("---") and "\nconfigs:" in text.split("\n---")[0]
