"""Data as strangers have it: spreadsheets' CSV, splits under other names, wrappers, links, tables that name files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from autoprog_diffusion.data.caption_text import first_captions
from autoprog_diffusion.data.captioned import load_captioned_images
from autoprog_diffusion.data.decode import read_image
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.labelled import class_names, load_labelled_images, load_train_and_val
from autoprog_diffusion.data.reading import Reading
from autoprog_diffusion.data.report import DataReport
from autoprog_diffusion.tasks.dreambooth import list_images

from .folders import save, write_table


def captions(source: Path | str, **values: Any) -> tuple[list[Any], Reading]:
    report = DataReport()
    data = load_captioned_images(train_data_dir=str(source), resolution=8, report=report, **values)
    for row in range(len(data)):
        read_image(data, row)
    assert report.readings[0].used == len(data)
    return data["text"][:], report.readings[0]


def labels(source: Path | str, **values: Any) -> tuple[list[str], Reading]:
    report = DataReport()
    data = load_labelled_images(train_data_dir=str(source), resolution=8, report=report, **values)
    names = class_names(data)
    return [names[label] for label in data["label"]], report.readings[0]


def images(folder: Path, *names: str) -> Path:
    for name in names:
        save(folder / name)
    return folder


def with_texts(folder: Path, *names: str) -> Path:
    for name in names:
        save(folder / name).with_suffix(".txt").write_text(f"of {name}")
    return folder


def table_of_names(path: Path, names: list[str]) -> Path:
    """A parquet file that names its images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"image": names, "text": names, "label": [0] * len(names)}).to_parquet(path)
    return path


@pytest.mark.parametrize("mark", [";", "\t", ", "])
def test_reader_takes_csv_as_any_spreadsheet_writes_it(tmp_path: Path, mark: str) -> None:
    images(tmp_path, "a.png", "b.png")
    rows = (("id", "file_name", "text"), ("1", "a.png", "one"), ("2", "b.png", '"two; 2,\t2"'))
    (tmp_path / "metadata.csv").write_text("\ufeff" + "\n".join(mark.join(row) for row in rows), encoding="utf-8")
    assert captions(tmp_path)[0] == ["one", "two; 2,\t2"]


READER = [
    ("metadata.csv", "file_name,text,text\na.png,1,2", "metadata.csv has several columns called 'text'"),
    ("metadata.csv", "file_name,text\n", "metadata.csv in .* has no rows"),
    ("metadata.jsonl", "", "metadata.jsonl in .* has no rows"),
    ("captions.csv", "file_name,text\na.png,1", r"not read: \['captions.csv'\]"),
    ("a.png.txt", "a", r"not read: \['a.png.txt'\]"),
]


def test_reader_says_what_is_wrong_with_captions(tmp_path_factory: pytest.TempPathFactory) -> None:
    for name, content, message in READER:
        tmp_path = tmp_path_factory.mktemp("case")
        images(tmp_path, "a.png")
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=message):
            captions(tmp_path)


def test_reader_names_archives_to_unpack(tmp_path: Path) -> None:
    (tmp_path / "shard-0.tar").write_text("x")
    for read in (captions, labels):
        with pytest.raises(DataError, match="Unpack shard-0.tar first"):
            read(tmp_path)


def test_reader_joins_texts_and_images_of_two_forms_of_unicode(tmp_path: Path) -> None:
    images(tmp_path, "cafe\u0301.png")
    (tmp_path / "caf\u00e9.txt").write_text("one")
    assert captions(tmp_path)[0] == ["one"]
    images(tmp_path / "classes", "cafe\u0301/0.png", "caf\u00e9/1.png")
    with pytest.raises(DataError, match="in two forms of Unicode: join them"):
        labels(tmp_path / "classes")


def test_reader_notes_folders_and_tables_that_are_called_as_splits_are(tmp_path: Path) -> None:
    _, reading = captions(with_texts(tmp_path / "a", "images/train/a.png", "images/Val/b.png", "c.png"))
    assert reading.used == 3
    assert any("['images/Val', 'images/train'] are no splits" in note for note in reading.notes)
    _, reading = captions(with_texts(tmp_path / "b", "train/a.png", "val/b.png"))
    assert not any("no splits" in note for note in reading.notes)
    write_table(tmp_path / "c" / "train_0.parquet", ["a"])
    write_table(tmp_path / "c" / "test_0.parquet", ["b"])
    _, reading = captions(tmp_path / "c")
    assert any("['test_0.parquet', 'train_0.parquet']" in note for note in reading.notes)


READER_REFUSES_FOLDERS = [
    (("data/x", "data/y"), r"data holds no image but in \['x', 'y'\]: give .*/data as the data"),
    (("images/train/x", "images/val/x"), r"images holds no image but in \['train', 'val'\]"),
    (("Train/x", "Train/y", "Test/x", "Test/y"), r"\['Test', 'Train'\] .* hold the same folders \['x', 'y'\]"),
    (("train/d/x", "train/d/y", "val/d/x", "val/d/y"), r"train/d holds no image but in \['x', 'y'\]"),
]


def test_reader_refuses_folders_of_classes_as_classes(tmp_path_factory: pytest.TempPathFactory) -> None:
    for folders, message in READER_REFUSES_FOLDERS:
        tmp_path = tmp_path_factory.mktemp("case")
        images(tmp_path, *(f"{folder}/{row}.png" for folder in folders for row in range(2)))
        with pytest.raises(DataError, match=message):
            labels(tmp_path)
        with pytest.raises(DataError, match=message):
            load_train_and_val(train_data=str(tmp_path), size=8, seed=0)


@pytest.mark.parametrize(
    "folders", [("cat/images", "dog/images"), ("cat/2021", "cat/2022", "dog/2021", "dog/2022"), ("cat/x", "dog")]
)
def test_reader_takes_what_lies_deeper_in_a_class(tmp_path: Path, folders: tuple[str, ...]) -> None:
    found, reading = labels(images(tmp_path, *(f"{folder}/0.png" for folder in folders)))
    assert found == [folder.partition("/")[0] for folder in folders]
    assert any("deeper in a class folder are of that class" in note for note in reading.notes)


def test_reader_says_which_images_are_there_twice(tmp_path: Path) -> None:
    with_texts(tmp_path / "real", "a.png", "b.png")
    (tmp_path / "data").mkdir()
    for name in ("one", "two"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "real", target_is_directory=True)
    found, reading = captions(tmp_path / "data")
    assert len(found) == 4
    assert "2 of the images are links to others of the images: every name counts" in reading.notes


@pytest.mark.parametrize("most", [0, -1])
def test_reader_refuses_to_draw_no_samples(tmp_path: Path, most: int) -> None:
    folder = images(tmp_path, *(f"{name}/{row}.png" for name in "ab" for row in range(3)))
    with pytest.raises(DataError, match=f"--max_train_samples {most} leaves nothing"):
        labels(folder, max_train_samples=most)
    with pytest.raises(DataError, match=f"--max_train_samples {most} leaves nothing"):
        load_train_and_val(train_data=str(folder), size=8, seed=0, max_train_samples=most)


def test_reader_takes_labels_as_tables_store_them(tmp_path: Path) -> None:
    folder = images(tmp_path, "a.png", "b.png", "c.png")

    def write(*values: Any) -> None:
        lines = [json.dumps({"file_name": f"{name}.png", "label": value}) for name, value in zip("abc", values)]
        (folder / "metadata.jsonl").write_text("\n".join(lines))

    write(1.0, 2, "1")
    assert labels(folder)[0] == ["1", "2", "1"]
    write("cat", " cat", "dog")
    assert labels(folder)[0] == ["cat", "cat", "dog"]
    for missing in ("", "  ", None, float("nan")):
        write("cat", missing, "dog")
        with pytest.raises(DataError, match="row 1 of the training set has no label"):
            labels(folder)
    write(0.5, 1.0, 2.0)
    with pytest.raises(DataError, match="class names or whole numbers"):
        labels(folder)


def test_reader_finds_the_files_that_a_table_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images(tmp_path, "data/a.png", "data/unused.png", "b.png")
    table_of_names(tmp_path / "data" / "x.PARQUET", ["a.png", str(tmp_path / "b.png")])
    found, reading = captions(tmp_path / "data")
    assert len(found) == 2
    assert {reason: item.count for reason, item in reading.left_out.items()} == {"not a parquet file": 1}
    assert captions(tmp_path / "data" / "x.PARQUET")[0] == found
    report = DataReport()
    load_captioned_images(dataset_name=str(tmp_path / "data" / "x.PARQUET"), resolution=8, report=report)
    assert report.readings[0].used == 2
    # As a program that ran in another folder wrote them.
    monkeypatch.chdir(tmp_path)
    table_of_names(tmp_path / "tables" / "y.parquet", ["data/a.png", "b.png"])
    assert len(captions("tables")[0]) == 2
    table_of_names(tmp_path / "tables" / "y.parquet", ["gone.png"])
    with pytest.raises(DataError, match=r"image 0 .*gone.png"):
        captions("tables")


def test_reader_finds_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with_texts(tmp_path / "data", "a.png")
    assert captions("~/data")[0] == captions(f"{tmp_path}/data/")[0] == ["of a.png"]
    assert [path.name for path in list_images("~/data", "instance_data_dir")] == ["a.png"]
    images(tmp_path / "classes", *(f"{name}/{row}.png" for name in "ab" for row in range(2)))
    train, val = load_train_and_val(train_data="~/classes", val_data="~/classes", size=8, seed=0)
    assert (len(train), len(val)) == (4, 4)


READER_REFUSES_ARRAYS = [
    ({"y": [0, 1, 5]}, r"y holds \[5\]; with 2 classes it must be 0 to 1"),
    ({"y": [0, 0.5, 1]}, r"y holds \[0.5\]"),
    ({"y": [[0], [1], [1]]}, r"y \(3, 1\); x must be"),
    ({"x": np.zeros((3, 3, 8, 8), np.uint8)}, r"x is uint8 \(3, 3, 8, 8\)"),
    ({"test": [True]}, r"test has the shape \(1,\)"),
    ({"classes": ["a", "a"]}, "two of the classes have the same name"),
]


def test_reader_refuses_arrays_that_do_not_fit(tmp_path_factory: pytest.TempPathFactory) -> None:
    for values, message in READER_REFUSES_ARRAYS:
        tmp_path = tmp_path_factory.mktemp("case")
        arrays = {"x": np.zeros((3, 8, 8), np.uint8), "y": [0, 1, 1], "classes": ["a", "b"], **values}
        np.savez(tmp_path / "data.npz", **arrays)
        with pytest.raises(DataError, match=message):
            labels(tmp_path / "data.npz")


def test_reader_says_how_to_use_another_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"splits \['validation'\], none of \['train'\]: rename the one that is meant"):
        captions(with_texts(tmp_path, "validation/a.png"))


def test_reader_titles_pictures_without_decoding_images(tmp_path: Path) -> None:
    with_texts(tmp_path, "a.png", "b.png")
    (tmp_path / "a.png").write_bytes(b"<html>")
    data = load_captioned_images(train_data_dir=str(tmp_path), resolution=8)
    assert first_captions(data, 2) == ("of a.png", "of b.png")
