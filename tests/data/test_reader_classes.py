"""Folders with one folder per class as users have them: every image is used, or counted, or the folder is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from autoprog_diffusion.data.decode import open_image
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.labelled import class_names, example_images, load_labelled_images, load_train_and_val
from autoprog_diffusion.data.listing import VIDEO
from autoprog_diffusion.data.reading import Reading
from autoprog_diffusion.data.report import DataReport

from .folders import describe, save, write_table


def load(folder: Path, **values: Any) -> tuple[datasets.Dataset, Reading]:
    report = DataReport()
    data = load_labelled_images(train_data_dir=str(folder), resolution=8, report=report, **values)
    assert report.readings[0].used == len(data)
    return data, report.readings[0]


def pair(folder: Path, **values: Any) -> tuple[datasets.Dataset, datasets.Dataset, DataReport]:
    report = DataReport()
    train, val = load_train_and_val(train_data=str(folder), size=8, seed=0, report=report, **values)
    assert [reading.used for reading in report.readings] == [len(train), len(val)]
    return train, val, report


def left_out(reading: Reading) -> dict[str, int]:
    return {reason: item.count for reason, item in reading.left_out.items()}


def write(folder: Path, *names: str) -> Path:
    for name in names:
        save(folder / name)
    return folder


def test_reader_uses_all_images_of_classes_whatever_they_are_called(tmp_path: Path) -> None:
    names = [f"{kind}/train_{row}.png" for kind in "ab" for row in range(3)]
    names += [f"{kind}/{name}" for kind in "ab" for name in ("test.png", "val-1.png", "deep/er/[x].png")]
    data, reading = load(write(tmp_path / "da[t]a", *names))
    assert (len(data), class_names(data), reading.left_out) == (12, ["a", "b"], {})
    train, val, _ = pair(tmp_path / "da[t]a", val_fraction=0.34)
    assert len(train) + len(val) == 12


READER_TAKES_FOLDERS = [("train", "bus"), ("training", "test"), ("10_test", "val"), ("validation", "x")]


def test_reader_takes_folders_of_any_name_as_classes(tmp_path_factory: pytest.TempPathFactory) -> None:
    for names in READER_TAKES_FOLDERS:
        tmp_path = tmp_path_factory.mktemp("case")
        data, _ = load(write(tmp_path, *(f"{name}/{row}.png" for name in names for row in range(2))))
        assert class_names(data) == sorted(names)
        assert len(data) == 4


def test_reader_reads_every_ending_that_pillow_opens_and_counts_the_others(tmp_path: Path) -> None:
    endings = ("gif", "jfif", "avif", "TIF", "tiff", "PNG", "jpeg", "webp", "bmp", "ppm")
    folder = write(tmp_path, *(f"a/{row}.{ending}" for row, ending in enumerate(endings)), "b/0.png", "b/1.png")
    for name in ("a/clip.mp4", "a/0.txt", "b/Thumbs.db", "b/._0.png", "b/.DS_Store", "b/paper.pdf"):
        (folder / name).write_text("x")
    (folder / "b" / "empty.png").write_bytes(b"")
    for name in (".ipynb_checkpoints/0.png", "__MACOSX/a/._0.png", "cover.png"):
        save(folder / name)
    data, reading = load(folder)
    assert class_names(data) == ["a", "b"]
    assert len(data) == len(endings) + 2
    assert left_out(reading) == {
        "outside of the class folders": 1,
        "not an image": 2,
        VIDEO: 1,
        "hidden": 2,
        "of the operating system": 1,
        "empty (0 bytes)": 1,
        "in hidden folders": 1,
        "in folders of the operating system": 1,
    }
    assert "the folder .ipynb_checkpoints is hidden and not read" in reading.notes
    train, val, _ = pair(folder)
    assert class_names(train) == class_names(val) == ["a", "b"]
    gif = next(row for row, label in enumerate(train["label"]) if label == 0)
    with open_image(train, gif) as image:
        assert image.size == (8, 8)


def test_reader_follows_links_of_classes(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", "a/0.png")
    write(tmp_path / "elsewhere", "0.png", "1.png")
    (folder / "b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "gone").symlink_to(tmp_path / "nowhere", target_is_directory=True)
    data, reading = load(folder)
    assert data["label"][:] == [0, 1, 1]
    assert left_out(reading) == {"a link to a folder above it": 1, "a broken link": 1}


def test_reader_takes_splits_of_class_folders(tmp_path: Path) -> None:
    names = [f"{split}/{kind}/{row}.png" for split in ("train", "validation") for kind in "ab" for row in range(2)]
    folder = write(tmp_path, *names, "test/0.png", "test/1.png", "cover.png")
    data, reading = load(folder)
    assert len(data) == 4
    wanted = {"in test, which has no class folders": 2, "outside of the class folders": 1}
    assert left_out(reading) == {**wanted, "in the split validation": 4}
    train, val, report = pair(folder)
    assert (len(train), len(val)) == (4, 4)
    assert left_out(report.readings[0]) == wanted
    assert report.readings[1].line().endswith("found 4, validated on 4")


def test_reader_ignores_a_stray_parquet_file_and_a_stray_picture(tmp_path: Path) -> None:
    folder = write(tmp_path / "images", "a/0.png", "b/0.png")
    write_table(folder / "stray.parquet", ["x"] * 5)
    data, reading = load(folder)
    assert (len(data), left_out(reading)) == (2, {"not an image": 1})
    write_table(tmp_path / "tables" / "train-0.parquet", ["x"] * 5)
    write_table(tmp_path / "tables" / "test-0.parquet", ["x"] * 5)
    write(tmp_path / "tables", "assets/picture.png", "figures/picture.png")
    data, reading = load(tmp_path / "tables")
    assert (len(data), left_out(reading)) == (5, {"not a parquet file": 2, "in the split test": 5})
    train, val, _ = pair(tmp_path / "tables")
    assert (len(train), len(val)) == (5, 5)


def test_reader_takes_labels_of_metadata_or_of_folders(tmp_path: Path) -> None:
    folder = write(tmp_path, "a/0.png", "b/0.png")
    lines = [{"file_name": "a/0.png", "kind": 3}, {"file_name": "b/0.png", "kind": "x"}]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert class_names(load(folder, label_column="kind")[0]) == ["3", "x"]
    data, reading = load(folder)
    assert class_names(data) == ["a", "b"]
    assert any("has no column 'label': the folders are the classes" in note for note in reading.notes)
    describe(folder, {"a/0.png": "x", "b/0.png": "y"})
    with pytest.raises(DataError, match=r"--label_column 'sort' is not a column of the data; it has \['image', 'la"):
        load(folder, label_column="sort")


def test_reader_accepts_a_saved_data_set_of_labels(tmp_path: Path) -> None:
    write(tmp_path / "images", *(f"{kind}/{row}.png" for kind in "ab" for row in range(4)))
    data, _ = load(tmp_path / "images")
    data.save_to_disk(tmp_path / "alone")
    datasets.DatasetDict({"train": data, "validation": data.select([0, 7])}).save_to_disk(tmp_path / "splits")
    assert len(load(tmp_path / "alone")[0]) == len(load(tmp_path / "splits")[0]) == 8
    assert [len(part) for part in pair(tmp_path / "splits")[:2]] == [8, 2]
    train, val, report = pair(tmp_path / "alone", val_fraction=0.25)
    assert (len(train), len(val), left_out(report.readings[0])) == (6, 2, {"held out for validation": 2})


def test_reader_draws_samples_evenly_from_the_classes_by_the_seed(tmp_path: Path) -> None:
    folder = write(tmp_path, *(f"{kind}/{row:02d}.png" for kind in "abc" for row in range(10)))

    def draw(seed: int) -> tuple[list[int], list[str]]:
        data, reading = load(folder, max_train_samples=6, seed=seed)
        assert left_out(reading) == {"beyond --max_train_samples 6": 24}
        files = data.cast_column("image", datasets.Image(decode=False))["image"][:]
        return data["label"][:], [file["path"] for file in files]

    labels, files = draw(0)
    assert labels == [0, 0, 1, 1, 2, 2]
    assert (labels, files) == draw(0)
    assert files != draw(1)[1]
    data, reading = load(folder, max_train_samples=2)
    assert reading.notes == ["1 classes have no image among the samples, for example ['c']"]
    images = example_images(data, ["a", "b", "c"], 8)
    assert [image is None for image in images] == [False, False, True]
    train, _, report = pair(folder, max_train_samples=7)
    assert len(train) == 7
    assert left_out(report.readings[0]) == {"held out for validation": 3, "beyond --max_train_samples 7": 20}


def empty_class(folder: Path) -> None:
    write(folder, "a/0.png", "b/0.png")
    (folder / "c").mkdir()
    (folder / "c" / "clip.mp4").write_text("x")


REFUSED = {
    "empty class": (empty_class, r"class folders \['c'\] of .* hold no image, only files such as c/clip.mp4"),
    "no folders": (lambda folder: write(folder, "0.png"), "has no folders: it must hold one folder of images per"),
    "split without classes": (
        lambda folder: write(folder, "train/0.png", "val/a/0.png"),
        "data/train has no folders: it must hold one folder",
    ),
    "split beside a folder": (
        lambda folder: write(folder, "train/a/0.png", "train/b/0.png", "extra/0.png"),
        r"a folder train, which is a split, and beside it \['extra'\]",
    ),
    "not npz": (lambda folder: (folder / "x.txt").write_text("x"), "holds no image and no parquet file"),
}


def test_reader_refuses_class_folders_by_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in REFUSED:
        tmp_path = tmp_path_factory.mktemp("case")
        make, message = REFUSED[name]
        folder = tmp_path / "data"
        folder.mkdir()
        make(folder)
        for read in (load, pair):
            with pytest.raises(DataError, match=message):
                read(folder)


def test_reader_refuses_damaged_files_by_name(tmp_path: Path) -> None:
    for name in ("a.npz", "b.parquet"):
        (tmp_path / name).write_bytes(b"damaged")
        with pytest.raises(DataError, match=name):
            pair(tmp_path / name)
    np.savez(tmp_path / "c.npz", x=np.zeros((4, 8, 8), dtype=np.uint8), y=[0, 1, 0, 1], classes=["a", "b"])
    assert len(load(tmp_path / "c.npz")[0]) == 4
