"""Read a data set: class folders, image folders, parquet and npz files, saved data sets, and names on the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .images import DataError


if TYPE_CHECKING:
    from datasets import Dataset

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Parquet files that are larger together are not held in memory.
IN_MEMORY = 2**29
# The only split of data that comes without splits.
WHOLE = "all"
HELD_OUT = ("validation", "val", "test")
Splits = dict[str, "Dataset"]
_COLUMN_OF = {"image_column": "image", "caption_column": "text", "label_column": "label"}
_HINTS = {
    "caption_column": "Captions of an image folder are in a metadata.jsonl: {'file_name': ..., 'text': ...} a line.",
    "label_column": "An image folder needs one sub-folder per class, at least two of them, and no metadata file.",
}


def read_splits(name: str, *, label_column: str | None, cache_dir: str | None = None) -> Splits:
    """All splits of a data set, with the columns that it has.

    Args:
        name: An .npz or .parquet file; a folder of images, of parquet files, or one that `save_to_disk` wrote; or a
            name on the Hub.
        label_column: Column of the classes: a folder of images then has one sub-folder per class. None for images with
            captions, which a metadata file in the folder holds.
        cache_dir: Where `datasets` keeps what it converts.

    Raises:
        DataError: Nothing is there, or it cannot be read.
    """
    path = Path(name)
    if path.suffix == ".npz":
        return read_npz(path)
    if path.suffix == ".parquet" or any(path.rglob("*.parquet")):
        return {WHOLE: read_parquet(path, label_column, cache_dir)}
    if not path.is_dir() or is_saved(path):
        return load_by_name(name, cache_dir=cache_dir)
    has_metadata = any(path.glob("metadata.*")) or any(path.glob("*/metadata.*"))
    if label_column is not None and not has_metadata:
        return read_class_folders(path)
    return load_by_name("imagefolder", cache_dir=cache_dir, data_dir=name)


def load_by_name(
    name: str, config_name: str | None = None, cache_dir: str | None = None, data_dir: str | None = None
) -> Splits:
    """All splits of a data set that `datasets` loads.

    Args:
        name: On the Hub, of a folder that it saved, or of a kind of folder: imagefolder.
        config_name: Configuration of the data set.
        cache_dir: Where it keeps what it downloads and converts.
        data_dir: The folder, for a kind of folder.

    Raises:
        DataError: It cannot be loaded.
    """
    import datasets

    with _refusing(data_dir or name):
        if is_saved(Path(name)):
            loaded: Any = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, config_name, cache_dir=cache_dir, data_dir=data_dir)
    if isinstance(loaded, datasets.Dataset):
        return {WHOLE: loaded}
    return dict(loaded)


def read_class_folders(path: Path) -> Splits:
    """Images in one folder per class, as torchvision's ImageFolder, in alphabetical order.

    The folder may hold `train/` and one of `validation/`, `val/` and `test/` with the class folders in them.

    Raises:
        DataError: There is no folder in it, or a class folder without an image.
    """
    folders = {name: path / name for name in ("train", *HELD_OUT)}
    if not folders["train"].is_dir():
        return {WHOLE: _class_folders(path)}
    return {name: _class_folders(folder) for name, folder in folders.items() if folder.is_dir()}


def read_parquet(path: Path, label_column: str | None = None, cache_dir: str | None = None) -> Dataset:
    """A parquet file, or all in a folder together; class names may be in the schema's metadata, under `names`.

    Raises:
        DataError: The file is not there, or one cannot be read.
    """
    import datasets
    import pyarrow.parquet

    if not path.exists():
        raise DataError(f"there is no file {path}.")
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    names = [str(file) for file in files]
    with _refusing(str(path)):
        size = sum(file.stat().st_size for file in files)
        if size <= IN_MEMORY:
            # `load_dataset` would copy the files into a cache in the home folder.
            data: Any = datasets.Dataset(pyarrow.parquet.read_table(names))  # type: ignore[arg-type]
        else:
            data = datasets.load_dataset("parquet", data_files=names, split="train", cache_dir=cache_dir)
        schema = pyarrow.parquet.read_schema(names[0])
    metadata = schema.metadata or {}
    classes = _class_names(metadata.get(b"names", b"").decode())
    if classes and label_column in data.column_names:
        data = data.cast_column(label_column, datasets.ClassLabel(names=classes))
    return data


def read_npz(path: Path) -> Splits:
    """Images of an .npz with `x` (N, H, W) or (N, H, W, 3) uint8, `y`, `classes`, and `test` (bool) if it has a split.

    Raises:
        DataError: The file is not there, or an array is missing or has another shape.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}.")
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    missing = [name for name in ("x", "y", "classes") if name not in arrays]
    if missing:
        raise DataError(f"{path} has no {missing}: it needs x, y and classes, and test for a split.")
    x = arrays["x"]
    y = arrays["y"]
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or len(x) != len(y):
        raise DataError(
            f"{path}: x is {x.dtype} {x.shape} and y {y.shape}; x must be uint8 (N, H, W) or (N, H, W, 3)."
        )
    data = _labelled(list(x), y.tolist(), arrays["classes"].tolist())
    if "test" not in arrays:
        return {WHOLE: data}
    train, test = split_by(data, arrays["test"].astype(bool))
    return {"train": train, "test": test}


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
    raise DataError(f"{source} has the splits {list(splits)}, none of {list(names)}.")


def read_training_set(
    folder: str | None,
    name: str | None,
    config_name: str | None,
    *,
    cache_dir: str | None,
    default: Callable[[], Dataset],
    **columns: str,
) -> Dataset:
    """The training split of a folder, of a named data set, or where neither is given of the default data.

    Args:
        folder: As `read_splits` takes it.
        name: Hub name or folder of a `datasets` data set, instead of `folder`.
        config_name: Configuration of that data set.
        cache_dir: Where `datasets` keeps what it downloads and converts.
        default: Makes the default data.
        columns: As `choose_columns` takes them.

    Raises:
        DataError: Both are given, nothing is there, it has no split for training, or lacks a column.
    """
    if folder and name:
        raise DataError("--train_data_dir and --dataset_name are both given: give one.")
    source = folder or name
    if not source:
        return default_data(default)
    if not folder:
        splits = load_by_name(source, config_name, cache_dir)
    elif any(file.is_file() for file in Path(folder).rglob("*")):
        splits = read_splits(folder, label_column=columns.get("label_column"), cache_dir=cache_dir)
    else:
        raise DataError(f"--train_data_dir {folder} is not a folder with files in it.")
    return choose_columns(choose_split(splits, ("train",), source), **columns)


def choose_columns(data: Dataset, **columns: str) -> Dataset:
    """Only the chosen columns, renamed.

    Args:
        data: Any data.
        columns: Name of the column that becomes `image` (as `image_column`), and `text` or `label` likewise.

    Raises:
        DataError: One is not there; the message lists those there are.
    """
    from datasets import Image as ImageFeature

    hint = _HINTS[list(columns)[-1]]
    for flag, name in columns.items():
        if name not in data.column_names:
            raise DataError(f"--{flag} {name!r} is not a column of the data; it has {data.column_names}. {hint}")
    new_names = {name: _COLUMN_OF[flag] for flag, name in columns.items()}
    data = data.select_columns(list(new_names))
    data = data.rename_columns(new_names)
    return data.cast_column("image", ImageFeature())


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


def spread(count: int, most: int) -> list[int]:
    """`most` of `count` rows, evenly spread; all rows where there are fewer."""
    most = min(most, count)
    return [row * count // most for row in range(most)]


def split_by(data: Dataset, held_out: np.ndarray) -> tuple[Dataset, Dataset]:
    """The rows of the data that are not held out, and those that are; `held_out` is (N,) bool."""
    return data.select(np.flatnonzero(~held_out)), data.select(np.flatnonzero(held_out))


def with_labels(data: Dataset, labels: list[int], names: list[str]) -> Dataset:
    """The data with a new column `label`, a `ClassLabel` of these names."""
    from datasets import ClassLabel

    data = data.add_column("label", labels)  # type: ignore[call-arg]
    return data.cast_column("label", ClassLabel(names=names))


def unused(names: Sequence[str], labels: Iterable[int]) -> list[str]:
    """Names of the classes that no label is of."""
    used = set(labels)
    return [name for label, name in enumerate(names) if label not in used]


def file_stamps(files: Sequence[Path]) -> list[str]:
    """Sizes and times of files; as a column, they let the data's fingerprint follow the files' content."""
    stats = [file.stat() for file in files]
    return [f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats]


def _class_folders(root: Path) -> Dataset:
    """Images in one folder per class, with a column `stamp` of the files' sizes and times."""
    # Hidden folders are a tool's own.
    visible = [path for path in root.iterdir() if not path.name.startswith(".")]
    folders = sorted(filter(Path.is_dir, visible))
    if not folders:
        raise DataError(f"{root} has no folders: it must hold one folder of images per class.")
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in EXTENSIONS)
        files += found
        labels += [label] * len(found)
    names = [folder.name for folder in folders]
    if empty := unused(names, labels):
        raise DataError(
            f"the class folders {empty[:5]} of {root} hold no image ({', '.join(EXTENSIONS)}): fill them or remove "
            "them."
        )
    data = _labelled([str(file) for file in files], labels, names)
    return data.add_column("stamp", file_stamps(files))  # type: ignore[call-arg]


def _labelled(images: list[Any], labels: list[int], classes: list[str]) -> Dataset:
    """A data set of images, as files or (H, W[, 3]) arrays, and their classes."""
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


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn any error into a DataError that names the data set."""
    try:
        yield
    except Exception as error:
        # `datasets`, its builders, pyarrow and the file system have errors of their own; all mean the same to a user.
        raise DataError(f"the data set {name} cannot be loaded: {error}") from error
