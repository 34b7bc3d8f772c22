"""Class folders and label columns, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from autoprog_diffusion.data.emoji_classes import group_names
from autoprog_diffusion.data.images import DataError, read_image
from autoprog_diffusion.data.labelled import class_names, example_images, load_labelled_images

from .tiny import parse
from .tiny_transformers import CLASSES, write_classes


Load = Callable[..., datasets.Dataset]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load_folder(folder: Path | None, *flags: object, label: str = "label") -> datasets.Dataset:
        args = parse(*(("--train_data_dir", folder) if folder else ()), *flags)
        return load_labelled_images(args.data, label, 32, str(tmp_path / "cache"))

    return load_folder


def as_parquet(folder: Path, column: str, values: list[Any]) -> Path:
    images = [Image.new("RGB", (8, 8), (20 * index, 0, 0)) for index in range(len(values))]
    features = datasets.Features({"image": datasets.Image()})
    data = datasets.Dataset.from_dict({"image": images}, features=features).add_column(column, values)
    folder.mkdir(parents=True)
    data.to_parquet(folder / "train.parquet")
    return folder


def test_sub_folders_are_classes(load: Load, tmp_path: Path) -> None:
    data = load(write_classes(tmp_path / "data", count=3))
    assert class_names(data) == list(CLASSES)
    assert data["label"] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert read_image(data, 4).size == (40, 32)


@pytest.mark.parametrize(
    ("values", "names", "labels"),
    [
        (["b", "a", "b"], ["a", "b"], [1, 0, 1]),
        ([10, 2, 10], ["2", "10"], [1, 0, 1]),
    ],
)
def test_names_and_numbers_of_a_column_are_classes(
    load: Load, tmp_path: Path, values: list[Any], names: list[str], labels: list[int]
) -> None:
    data = load(as_parquet(tmp_path / "data", "kind", values), label="kind")
    assert class_names(data) == names
    assert data["label"] == labels


def test_fewer_samples_are_spread_over_the_classes(load: Load, tmp_path: Path) -> None:
    data = load(write_classes(tmp_path / "data", count=4), "--max_train_samples", 6)
    assert data["label"] == [0, 0, 1, 1, 2, 2]


def test_examples_are_the_first_picture_of_each_class(load: Load, tmp_path: Path) -> None:
    data = load(write_classes(tmp_path / "data"))
    images = example_images(data, ["tulip", "lily"], 16)
    assert [image.size for image in images] == [(16, 16), (16, 16)]
    for image, name in zip(images, ("tulip", "lily")):
        middle = Image.open(tmp_path / "data" / name / "0.png").crop((4, 0, 36, 32)).resize((16, 16), Image.BICUBIC)
        assert np.abs(np.asarray(image, dtype=int) - np.asarray(middle, dtype=int)).max() <= 2


def test_an_empty_class_folder_is_named(load: Load, tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "data")
    (folder / "orchid").mkdir()
    with pytest.raises(DataError, match=r"class folders \['orchid'\] of .* hold no image"):
        load(folder)


def test_pictures_without_sub_folders_are_refused(load: Load, tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "data") / "rose"
    with pytest.raises(DataError, match=r"--label_column 'label' is not a column.*one sub-folder per class"):
        load(folder)


def test_rows_without_a_label_are_refused(load: Load, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 of the training set has no label \(2 rows"):
        load(as_parquet(tmp_path / "data", "label", ["a", None, None]))


def test_labels_that_are_no_classes_are_refused(load: Load, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class names or numbers, not .*float"):
        load(as_parquet(tmp_path / "data", "label", [0.5, 1.5]))


def test_the_default_data_are_classes_the_bundled_model_lacks(load: Load) -> None:
    data = load(None)
    assert class_names(data) == group_names("new")
    assert sorted(set(data["label"])) == list(range(10))
    assert not set(group_names("new")) & set(group_names("pretrained"))
    assert read_image(data, 0).size == (32, 32)
