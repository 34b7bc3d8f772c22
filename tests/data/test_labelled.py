"""Labelled images from every kind of source, and the sets that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from autoprog_diffusion.data.decode import open_image, read_image
from autoprog_diffusion.data.emoji import group_names
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.labelled import class_names, example_images, load_labelled_images, load_train_and_val

from .folders import COLOURS, write_classes, write_parquet


FLOWERS = ("lily", "rose", "tulip")


def load(folder: Path | None, **values: Any) -> datasets.Dataset:
    return load_labelled_images(train_data_dir=str(folder) if folder else None, resolution=32, **values)


def write_flowers(folder: Path, count: int = 8) -> Path:
    random = np.random.default_rng(0)
    for name in FLOWERS:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((40, 32), Image.Resampling.NEAREST).save(folder / name / f"{index}.png")
    return folder


def pair(train: Path, **values: Any) -> tuple[datasets.Dataset, datasets.Dataset]:
    return load_train_and_val(train_data=str(train), size=8, seed=0, **values)


def colour(data: datasets.Dataset, row: int) -> Any:
    return open_image(data, row).convert("RGB").getpixel((0, 0))


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    data = load(write_flowers(tmp_path / "data", count=3))
    assert class_names(data) == list(FLOWERS)
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
    tmp_path: Path, values: list[Any], names: list[str], labels: list[int]
) -> None:
    data = load(write_parquet(tmp_path / "data", "kind", values), label_column="kind")
    assert class_names(data) == names
    assert data["label"] == labels


def test_fewer_samples_are_spread_over_the_classes(tmp_path: Path) -> None:
    data = load(write_flowers(tmp_path / "data", count=4), max_train_samples=6)
    assert data["label"] == [0, 0, 1, 1, 2, 2]


def test_examples_are_the_first_picture_of_each_class(tmp_path: Path) -> None:
    data = load(write_flowers(tmp_path / "data"))
    images = example_images(data, ["tulip", "lily"], 16)
    assert [image.size for image in images] == [(16, 16), (16, 16)]
    for image, name in zip(images, ("tulip", "lily")):
        middle = Image.open(tmp_path / "data" / name / "0.png").crop((4, 0, 36, 32)).resize((16, 16), Image.BICUBIC)
        assert np.abs(np.asarray(image, dtype=int) - np.asarray(middle, dtype=int)).max() <= 2


def test_labels_may_come_from_a_metadata_file(tmp_path: Path) -> None:
    folder = write_flowers(tmp_path / "data", count=2) / "rose"
    lines = [{"file_name": "0.png", "kind": "old"}, {"file_name": "1.png", "kind": "new"}]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    data = load(folder, label_column="kind", cache_dir=str(tmp_path / "cache"))
    assert [class_names(data)[label] for label in data["label"]] == ["old", "new"]


def test_a_replaced_picture_changes_the_fingerprint(tmp_path: Path) -> None:
    folder = write_flowers(tmp_path / "data", count=2)
    first, same = load(folder)._fingerprint, load(folder)._fingerprint
    Image.new("RGB", (9, 9)).save(folder / "rose" / "1.png")
    assert first == same
    assert load(folder)._fingerprint != first


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    folder = write_flowers(tmp_path / "data")
    (folder / "orchid").mkdir()
    with pytest.raises(DataError, match=r"class folders \['orchid'\] of .* hold no image"):
        load(folder)


def test_pictures_without_sub_folders_are_refused(tmp_path: Path) -> None:
    folder = write_flowers(tmp_path / "data") / "rose"
    with pytest.raises(DataError, match="has no folders: it must hold one folder of images per class"):
        load(folder)


def test_rows_without_a_label_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 of the training set has no label \(2 rows"):
        load(write_parquet(tmp_path / "data", "label", ["a", None, None]))


def test_labels_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class names or whole numbers, not .*float"):
        load(write_parquet(tmp_path / "data", "label", [0.5, 1.5]))


def test_the_default_data_are_classes_the_bundled_model_lacks() -> None:
    data = load(None)
    assert class_names(data) == group_names("new")
    assert sorted(set(data["label"])) == list(range(10))
    assert not set(group_names("new")) & set(group_names("pretrained"))
    assert read_image(data, 0).size == (32, 32)


def test_a_folder_may_bring_its_validation_set(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 5)
    write_classes(tmp_path / "val", 3)
    train, val = pair(tmp_path)
    assert (len(train), len(val)) == (10, 6)


def test_parquet_files_and_saved_data_sets_are_read(tmp_path: Path) -> None:
    images = [Image.new("RGB", (8, 8), COLOURS[name]) for name in ("red", "blue") * 4]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["red", "blue"])})
    data = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 4}, features=features)
    data.to_parquet(tmp_path / "a.parquet")
    datasets.DatasetDict({"train": data, "test": data.select(range(4))}).save_to_disk(tmp_path / "saved")
    for name, sizes in (("a.parquet", (6, 2)), ("saved", (8, 4))):
        train, val = pair(tmp_path / name, val_fraction=0.25)
        assert (len(train), len(val)) == sizes
        assert class_names(train) == ["red", "blue"]
        assert colour(train, 0) == COLOURS[class_names(train)[train[0]["label"]]]
    assert class_names(load(tmp_path / "saved")) == ["red", "blue"]
    with pytest.raises(DataError, match="--image_column 'picture' is not a column of the data; it has"):
        pair(tmp_path / "a.parquet", image_column="picture")


def test_an_npz_brings_its_split(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    test = np.array([0, 1, 0, 0, 1, 0], dtype=bool)
    np.savez(tmp_path / "a.npz", x=x, y=np.array([0, 0, 1, 0, 1, 1]), test=test, classes=np.array(["a", "b"]))
    train, val = pair(tmp_path / "a.npz")
    assert [colour(train, row)[0] for row in range(4)] == [0, 2, 3, 5]
    assert [open_image(val, row).size for row in range(2)] == [(4, 4), (4, 4)]
    assert val["label"][:] == [0, 1]


def test_names_in_the_schema_of_a_parquet_file_are_the_classes(tmp_path: Path) -> None:
    folder = write_parquet(tmp_path / "data", "label", [1, 0, 1, 0])
    table = pq.read_table(folder / "train.parquet")
    pq.write_table(table.replace_schema_metadata({"names": "cat,dog"}), folder / "train.parquet")
    assert class_names(load(folder)) == ["cat", "dog"]
    assert class_names(pair(folder)[0]) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "empty").mkdir(), r"class folders .*empty.* hold no image"),
        (lambda root: [path.unlink() for path in (root / "red").iterdir()], r"class folders .*red.* hold no image"),
        (lambda root: [*[p.unlink() for p in (root / "red").iterdir()], (root / "red").rmdir()], "at least 2"),
    ],
    ids=["empty class", "emptied class", "one class"],
)
def test_bad_folders_are_refused(tmp_path: Path, change: object, message: str) -> None:
    change(write_classes(tmp_path / "all"))  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        pair(tmp_path / "all")


def test_other_bad_data_is_refused(tmp_path: Path) -> None:
    write_classes(tmp_path / "a", classes=("blue", "red"))
    write_classes(tmp_path / "b", classes=("blue", "green"))
    (tmp_path / "c").mkdir()
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 4, 4)), y=[0, 1], classes=["a", "b"])
    np.savez(tmp_path / "e.npz", x=np.zeros((2, 4, 4), dtype=np.uint8))
    wrong = {
        "differ in classes": {"train": tmp_path / "a", "val_data": str(tmp_path / "b")},
        "has no folders": {"train": tmp_path / "c"},
        "must be uint8": {"train": tmp_path / "d.npz"},
        r"has no \['y', 'classes'\]": {"train": tmp_path / "e.npz"},
        "there is no file": {"train": tmp_path / "f.npz"},
        "no file .*g.parquet": {"train": tmp_path / "g.parquet"},
    }
    for message, values in wrong.items():
        with pytest.raises(DataError, match=message):
            pair(**values)
