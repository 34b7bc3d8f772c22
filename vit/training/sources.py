"""Where labelled images come from: folders, `datasets`, parquet and npz files, and the emoji that packages carry."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from autoprog_diffusion.growth.errors import GrowthError

from .arguments import DataArguments
from .emoji import CLASSES, emoji_images


if TYPE_CHECKING:
    import datasets

_HELD = ("validation", "val", "test")
EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class DataError(GrowthError):
    """Labelled images that cannot be used."""


@dataclass(frozen=True)
class Source:
    """Labelled images that are read one by one.

    Attributes:
        read: Row -> image; raises what Pillow raises where it cannot be decoded.
        names: What to call a row in a message, a file if it is one.
        labels: Class of every row.
        classes: Their names.
    """

    read: Callable[[int], Image.Image]
    names: Sequence[str]
    labels: Sequence[int]
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Sequence[int]) -> Source:
        """The source of some of the rows, in the given order."""
        names, labels = [self.names[row] for row in rows], [self.labels[row] for row in rows]
        return Source(partial(_read_selected, self.read, list(rows)), names, labels, self.classes)


def load_sources(args: DataArguments, size: int, seed: int) -> tuple[Source, Source]:
    """Training and validation images of the arguments.

    Args:
        args: What to load.
        size: Side in pixels at which emoji are rendered.
        seed: Of the split, where the data has none.

    Raises:
        DataError: Nothing is there, a class is empty, there are fewer than 2, or the two sets differ in classes.
    """
    train, val = _pair(args, size)
    if args.val_data:
        val = _one(args.val_data, args, _HELD)
    if val is None:
        train, val = _split(train, args.val_fraction, seed)
    if list(train.classes) != list(val.classes):
        odd = sorted(set(train.classes) ^ set(val.classes))[:5]
        raise DataError(f"training and validation data differ in classes, for example {odd}: make them the same.")
    if len(train.classes) < 2:
        raise DataError(f"the training data has the classes {list(train.classes)}: at least 2 are needed.")
    counts = np.bincount(train.labels, minlength=len(train.classes))
    empty = [name for name, count in zip(train.classes, counts) if not count]
    if empty:
        raise DataError(f"no training image is of class {empty[:5]}: add some, or remove the class.")
    if not len(val):
        raise DataError("there is no validation image: give --val_data, or a larger --val_fraction.")
    if args.max_train_samples and args.max_train_samples < len(train):
        rows = np.random.default_rng(seed).permutation(len(train))[: args.max_train_samples]
        train = train.select(sorted(rows.tolist()))
    return train, val


def _pair(args: DataArguments, size: int) -> tuple[Source, Source | None]:
    if args.train_data is None:
        train, val = emoji_images(size)
        return _table(train, "image", "label", list(CLASSES)), _table(val, "image", "label", list(CLASSES))
    path = Path(args.train_data)
    if path.suffix == ".npz":
        return npz_sources(path)
    if _is_folder(path) and (path / "train").is_dir():
        held = next((path / name for name in ("val", "validation", "test") if (path / name).is_dir()), None)
        return folder_source(path / "train"), folder_source(held) if held else None
    train = _one(args.train_data, args, ("train",))
    return train, _one(args.train_data, args, _HELD, needed=False) if _is_hub(args.train_data) else None


def _one(name: str, args: DataArguments, splits: Sequence[str], *, needed: bool = True) -> Any:
    path = Path(name)
    if path.suffix == ".npz":
        train, test = npz_sources(path)
        return test if test is not None and "train" not in splits else train
    if path.suffix == ".parquet" or list(path.glob("*.parquet")):
        return parquet_source(path, args.image_column, args.label_column)
    return hub_source(name, args, splits, needed) if _is_hub(name) else folder_source(path)


def _is_folder(path: Path) -> bool:
    """Whether a folder holds images, not a data set that `datasets` saved."""
    return path.is_dir() and not any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json"))


def _is_hub(name: str) -> bool:
    """Whether `datasets` has to load it: by its name, or from a folder that it saved."""
    return not _is_folder(Path(name)) and Path(name).suffix not in (".npz", ".parquet")


def folder_source(root: Path) -> Source:
    """Images in one folder per class, as torchvision's ImageFolder: classes in alphabetical order.

    Raises:
        DataError: There is no such folder, no class in it, or a class without an image.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not folders:
        raise DataError(f"{root} has no folders: it must hold one folder of images per class.")
    files: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
        if not found:
            raise DataError(f"the class folder {folder} holds no image ({', '.join(EXTENSIONS)}): fill or remove it.")
        files += found
        labels += [label] * len(found)
    names = [str(path) for path in files]
    return Source(partial(_read_file, names), names, labels, [folder.name for folder in folders])


def npz_sources(path: Path) -> tuple[Source, Source | None]:
    """Images of an .npz with `x` (N, H, W) or (N, H, W, 3) uint8, `y`, `classes`, and `test` (bool) if it has a split.

    Raises:
        DataError: The file is not there, or an array is missing or has another shape.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}.")
    with np.load(path, allow_pickle=False) as file:
        missing = [name for name in ("x", "y", "classes") if name not in file]
        if missing:
            raise DataError(f"{path} has no {missing}: it needs x, y and classes, and test for a split.")
        x, y, classes = file["x"], file["y"], [str(name) for name in file["classes"]]
        test = file["test"].astype(bool) if "test" in file else None
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or len(x) != len(y):
        raise DataError(
            f"{path}: x is {x.dtype} {x.shape} and y {y.shape}; x must be uint8 (N, H, W) or (N, H, W, 3)."
        )
    whole = Source(partial(_read_array, x), [f"{path.name}[{row}]" for row in range(len(y))], y.tolist(), classes)
    if test is None:
        return whole, None
    return whole.select(np.flatnonzero(~test).tolist()), whole.select(np.flatnonzero(test).tolist())


def parquet_source(path: Path, image_column: str, label_column: str) -> Source:
    """Images of a parquet file, or of all in a folder; `datasets` reads them, class names from the schema if any.

    Raises:
        DataError: A file or a column is not there.
    """
    import datasets
    import pyarrow.parquet

    files = sorted(str(file) for file in (path.glob("*.parquet") if path.is_dir() else [path]))
    if not all(Path(file).is_file() for file in files):
        raise DataError(f"there is no file {path}.")
    # Read as it is: `load_dataset` would copy the file into a cache in the home folder.
    table = pyarrow.parquet.read_table(files)
    names = (table.schema.metadata or {}).get(b"names", b"").decode()
    return _table(datasets.Dataset(table), image_column, label_column, _names(names))  # type: ignore[arg-type]


def _names(text: str) -> list[str] | None:
    """Class names in a schema's metadata: a JSON list, or words with commas between them."""
    if text.startswith("["):
        return [str(name) for name in json.loads(text)]
    return text.split(",") if text else None


def hub_source(name: str, args: DataArguments, splits: Sequence[str], needed: bool) -> Source | None:
    """Images of a data set that `datasets` knows by name, or of a folder that it saved.

    Args:
        name: What to load.
        args: Names of the columns.
        splits: The first of these that it has; a data set without splits is taken whole for training.
        needed: Raise where it has none, instead of returning None.

    Raises:
        DataError: It cannot be loaded, or has none of the splits.
    """
    import datasets

    try:
        saved = Path(name).is_dir()
        loaded: Any = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except Exception as error:  # the Hub, the file system and every builder have errors of their own
        raise DataError(f"--train_data/--val_data {name} is no folder or file, and no data set: {error}") from error
    found = (
        loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded, "test": loaded if needed else None}
    )
    split = next((found[split] for split in splits if found.get(split) is not None), None)
    if split is not None:
        return _table(split, args.image_column, args.label_column)
    if needed:
        raise DataError(f"{name} has the splits {list(found)}, none of {list(splits)}.")
    return None


def _table(data: datasets.Dataset, image: str, label: str, names: Sequence[str] | None = None) -> Source:
    import datasets

    missing = [column for column in (image, label) if column not in data.column_names]
    if missing:
        raise DataError(
            f"the data has no column {missing}, but {data.column_names}: use --image_column/--label_column."
        )
    column = data[label][:]
    feature = data.features[label]
    if isinstance(feature, datasets.ClassLabel):
        names = feature.names
    if names is None:
        kinds = sorted(set(column))
        names, column = [str(kind) for kind in kinds], [kinds.index(value) for value in column]
    undecoded = data
    if isinstance(data.features[image], datasets.Image):
        undecoded = data.cast_column(image, datasets.Image(decode=False))
    rows = [f"row {row}" for row in range(len(data))]
    return Source(partial(_read_row, undecoded, image), rows, list(column), list(names))


def _split(source: Source, fraction: float, seed: int) -> tuple[Source, Source]:
    """A random part of every class for validation, at least one image of each."""
    rng, labels = np.random.default_rng(seed), np.asarray(source.labels)
    held: list[int] = []
    for label in range(len(source.classes)):
        rows = np.flatnonzero(labels == label)
        held += rng.permutation(rows)[: max(1, round(fraction * len(rows)))].tolist()
    inside = set(held)
    return source.select([row for row in range(len(source)) if row not in inside]), source.select(sorted(held))


def _read_file(names: Sequence[str], row: int) -> Image.Image:
    return Image.open(names[row])


def _read_array(x: np.ndarray, row: int) -> Image.Image:
    return Image.fromarray(x[row])


def _read_row(data: datasets.Dataset, column: str, row: int) -> Image.Image:
    value = data[row][column]
    if isinstance(value, dict):
        return Image.open(io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"])
    return Image.open(io.BytesIO(value)) if isinstance(value, bytes) else value


def _read_selected(read: Callable[[int], Image.Image], rows: list[int], row: int) -> Image.Image:
    return read(rows[row])
