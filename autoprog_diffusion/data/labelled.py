"""Images of classes: class folders, or any data set with a label column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from .decode import read_image, undecoded
from .emoji import DEFAULT_STYLE, emoji_classes, emoji_in_both_styles
from .errors import DataError
from .label_values import clean_label
from .reading import Reading
from .report import DataReport
from .rows import split_by, unused, with_labels
from .sources import (
    choose_columns,
    choose_split,
    count_other_splits,
    default_data,
    read_splits,
    read_training_set,
)
from .splits import HELD_OUT, TRAIN
from .subset import draw_samples


if TYPE_CHECKING:
    from datasets import Dataset


def load_labelled_images(
    *,
    train_data_dir: str | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    max_train_samples: int | None = None,
    resolution: int,
    cache_dir: str | None = None,
    seed: int = 0,
    report: DataReport | None = None,
) -> Dataset:
    """A training set with the columns `image` and `label`, a `ClassLabel`.

    By default OpenMoji pictures of classes that the bundled DiT does not know.

    Args:
        train_data_dir: As `sources.read_splits` takes it.
        dataset_name: Hub name or folder of a `datasets` data set, instead of `train_data_dir`.
        dataset_config_name: Configuration of that data set.
        image_column: Column that holds the images.
        label_column: Column that holds the classes, names or numbers.
        max_train_samples: Take only so many images, a random choice, evenly from all classes.
        resolution: Side in pixels at which the default data is rendered.
        cache_dir: Where `datasets` keeps what it downloads and converts.
        seed: Of the random choice.
        report: Gets what was found and left out.

    Raises:
        DataError: Nothing is there, a column is missing, a row has no label, or a class folder has no image.
    """
    data, reading = read_training_set(
        train_data_dir,
        dataset_name,
        dataset_config_name,
        cache_dir=cache_dir,
        default=lambda: emoji_classes(DEFAULT_STYLE, "new", size=resolution),
        report=report,
        image_column=image_column,
        label_column=label_column,
    )
    if not len(data):
        raise DataError(f"the training set is empty. {reading.line()}.")
    return draw_samples(_with_classes(data), max_train_samples, seed, reading=reading, balanced=True)


def load_train_and_val(
    *,
    train_data: str | None = None,
    val_data: str | None = None,
    val_fraction: float = 0.1,
    image_column: str = "image",
    label_column: str = "label",
    max_train_samples: int | None = None,
    size: int,
    seed: int,
    report: DataReport | None = None,
) -> tuple[Dataset, Dataset]:
    """Training and validation set with the columns `image` and `label`, a `ClassLabel`; images are not decoded.

    By default emoji in two styles, sorted by Unicode's subcategories.

    Args:
        train_data: As `sources.read_splits` takes it.
        val_data: The same for validation; None takes a split that `train_data` has, or a part of it.
        val_fraction: Part of every class that is held out where there is no validation set.
        image_column: Column that holds the images.
        label_column: Column that holds the classes, names or numbers.
        max_train_samples: Use only so many training images, a random choice.
        size: Side in pixels at which the default data is rendered.
        seed: Of the random choices.
        report: Gets what was found and left out.

    Raises:
        DataError: Nothing is there, a class is empty, there are fewer than 2, or the two sets differ in classes.
    """
    report = report or DataReport()
    columns = {"image_column": image_column, "label_column": label_column}
    reading = report.add("trained on", train_data or "the default data")
    validation = report.add("validated on", val_data or reading.source)
    val = None
    if train_data is None:
        train, val = default_data(lambda: emoji_in_both_styles(size))
    else:
        train, val = _read_pair(train_data, columns, reading, held_out=not val_data)
    if val_data:
        val = _read_validation(val_data, columns, validation)
    if val is None:
        train, val = _split(train, val_fraction, seed)
        reading.leave_out("held out for validation", count=len(val))
    _check_classes(train, val)
    reading.used = len(train)
    validation.used = len(val)
    train = draw_samples(train, max_train_samples, seed, reading=reading)
    return undecoded(train), undecoded(val)


def class_names(data: Dataset) -> list[str]:
    """Names of the classes, in the order of their labels."""
    return list(data.features["label"].names)


def example_images(data: Dataset, names: Sequence[str], size: int) -> list[Image.Image | None]:
    """The first training image of every named class, (size, size); None where it has none."""
    first: dict[str, int] = {}
    classes = class_names(data)
    for row, label in enumerate(data["label"][:]):
        first.setdefault(classes[label], row)
    images: list[Image.Image | None] = []
    for name in names:
        if name in first:
            image = read_image(data, first[name])
            images.append(ImageOps.fit(image, (size, size)))
        else:
            images.append(None)
    return images


def _read_pair(
    source: str, columns: dict[str, str], reading: Reading, *, held_out: bool
) -> tuple[Dataset, Dataset | None]:
    """The training split of a source, and where it is asked for a split to validate on, if there is one."""
    splits = read_splits(source, cache_dir=None, reading=reading, **columns)
    train = choose_split(splits, (TRAIN,), source)
    val = None
    if held_out and any(name in splits for name in HELD_OUT):
        val = choose_split(splits, HELD_OUT, source)
    count_other_splits(splits, [train, val], reading)
    return _chosen(train, columns), None if val is None else _chosen(val, columns)


def _read_validation(source: str, columns: dict[str, str], reading: Reading) -> Dataset:
    """The validation split of a source of its own."""
    splits = read_splits(source, cache_dir=None, reading=reading, **columns)
    val = choose_split(splits, HELD_OUT, source)
    count_other_splits(splits, [val], reading)
    return _chosen(val, columns)


def _chosen(data: Dataset, columns: dict[str, str]) -> Dataset:
    return _with_classes(choose_columns(data, **columns))


def _with_classes(data: Dataset) -> Dataset:
    """Turn labels of any type into a `ClassLabel` of the classes that occur."""
    from datasets import ClassLabel

    labels = [clean_label(label) for label in data["label"][:]]
    missing = [row for row, label in enumerate(labels) if label is None]
    if missing:
        raise DataError(f"row {missing[0]} of the training set has no label ({len(missing)} rows have none).")
    feature = data.features["label"]
    if isinstance(feature, ClassLabel):
        return data
    if not all(isinstance(label, (int, str)) for label in labels):
        raise DataError(f"labels must be class names or whole numbers, not {feature}: choose another --label_column.")
    classes, numbers = np.unique(labels, return_inverse=True)
    return with_labels(data.remove_columns("label"), numbers.tolist(), [str(label) for label in classes])


def _split(data: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Hold out a random part of every class, at least one image of each."""
    rng = np.random.default_rng(seed)
    labels = np.asarray(data["label"][:])
    held_out = np.zeros(len(data), dtype=bool)
    for label in range(len(class_names(data))):
        rows = rng.permutation(np.flatnonzero(labels == label))
        held_out[rows[: max(1, round(fraction * len(rows)))]] = True
    return split_by(data, held_out)


def _check_classes(train: Dataset, val: Dataset) -> None:
    """Refuse two sets that differ in classes, fewer than 2 classes, and a class or a set without an image."""
    names = class_names(train)
    val_names = class_names(val)
    if names != val_names:
        odd = sorted({*names}.symmetric_difference(val_names))[:5]
        raise DataError(f"training and validation data differ in classes, for example {odd}: make them the same.")
    if len(names) < 2:
        raise DataError(f"the training data has the classes {names}: at least 2 are needed.")
    if empty := unused(names, train["label"][:]):
        raise DataError(f"no training image is of class {empty[:5]}: add some, or remove the class.")
    if not len(val):
        raise DataError("there is no validation image: give --val_data, or a larger --val_fraction.")
