"""Images of classes: one sub-folder per class, or a `datasets` data set with a label column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from autoprog_diffusion.training.arguments import DataArguments

from .emoji_classes import emoji_classes
from .images import DEFAULT_STYLE, DataError, _load


if TYPE_CHECKING:
    import datasets


def load_labelled_images(
    args: DataArguments, label_column: str, resolution: int, cache_dir: str | None = None
) -> datasets.Dataset:
    """The training set that the arguments name, with columns `image` and `label`, a `ClassLabel`.

    By default OpenMoji pictures of classes that the bundled DiT does not know. `--max_train_samples` takes rows evenly
    spread over the data, which folders sort by class.

    Raises:
        DataError: Nothing is there, a column is missing, a row has no label, or a class has no image.
    """
    if args.train_data_dir and args.dataset_name:
        raise DataError("--train_data_dir and --dataset_name are both given: give one.")
    if not args.train_data_dir and not args.dataset_name:
        try:
            data: Any = emoji_classes(DEFAULT_STYLE, "new", size=resolution)
        except (ImportError, ValueError) as error:
            raise DataError(f"the default data cannot be made: {error}") from error
    else:
        _check_folders(args.train_data_dir)
        data = _columns(_load(args, cache_dir), args.image_column, label_column)
    if not len(data):
        raise DataError("the training set is empty.")
    most = args.max_train_samples
    if most is not None and most < len(data):
        data = data.select([row * len(data) // most for row in range(most)])
    return _named(data)


def class_names(data: datasets.Dataset) -> list[str]:
    """Names of the classes, in the order of their labels."""
    return list(data.features["label"].names)


def example_images(data: datasets.Dataset, names: Sequence[str], size: int) -> list[Image.Image]:
    """The first training image of every named class, (size, size)."""
    from PIL import ImageOps

    labels, classes = data["label"], class_names(data)
    rows = [labels.index(classes.index(name)) for name in names]
    return [ImageOps.fit(data[row]["image"].convert("RGB"), (size, size)) for row in rows]


def _check_folders(folder: str | None) -> None:
    root = Path(folder or "")
    if not folder or not root.is_dir():
        return
    root = root / "train" if (root / "train").is_dir() else root
    empty = [
        path.name
        for path in sorted(root.iterdir())
        if path.is_dir() and not path.name.startswith(".") and not any(file.is_file() for file in path.rglob("*"))
    ]
    if empty:
        raise DataError(f"the class folders {empty[:5]} of {root} hold no image: fill them or remove them.")


def _columns(data: Any, image_column: str, label_column: str) -> datasets.Dataset:
    from datasets import Image as ImageFeature

    for flag, name in (("image_column", image_column), ("label_column", label_column)):
        if name not in data.column_names:
            raise DataError(
                f"--{flag} {name!r} is not a column of the data; it has {data.column_names}. An image folder needs "
                "one sub-folder per class, at least two of them, and no metadata file."
            )
    data = data.select_columns([image_column, label_column])
    names = {old: new for old, new in ((image_column, "image"), (label_column, "label")) if old != new}
    return data.rename_columns(names).cast_column("image", ImageFeature())


def _named(data: datasets.Dataset) -> datasets.Dataset:
    """Labels of any type as a `ClassLabel` of the classes that occur."""
    from datasets import ClassLabel

    labels = data["label"]
    missing = [row for row, label in enumerate(labels) if label is None or label == -1]
    if missing:
        raise DataError(f"row {missing[0]} of the training set has no label ({len(missing)} rows have none).")
    feature: Any = data.features["label"]
    if isinstance(feature, ClassLabel):
        return data
    if not all(isinstance(label, (int, str)) for label in labels):
        raise DataError(f"labels must be class names or numbers, not {feature}: choose another --label_column.")
    names = {label: str(label) for label in sorted(set(labels))}
    rows = list(names)
    numbers = [rows.index(label) for label in labels]
    data = data.remove_columns("label").add_column("label", numbers)  # type: ignore[call-arg]
    return data.cast_column("label", ClassLabel(names=list(names.values())))
