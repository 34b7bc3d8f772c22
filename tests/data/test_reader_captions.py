"""Folders of captioned images as users have them: every image is used, or counted, or the folder is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import pytest

from autoprog_diffusion.data.captioned import load_captioned_images
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.reading import Reading
from autoprog_diffusion.data.report import DataReport

from .captioned import captions_of, left_out, load, with_metadata, with_texts
from .folders import describe, save, write_table


NAMES = {
    "train in a folder's name": ("toy train/a.png", "toy train/b.png", "cars/a.png", "cars/b.png"),
    "training and test": ("training/a.png", "10_sks/b.png", "10_test/c.png"),
    "files": ("train_1.png", "test-2.jpg", "validation.webp", "val 3.png", "eval.png"),
    "flat": ("train_1.png", "a.png", "b.png"),
    "test and dev": ("test/a.png", "dev/b.png", "valid/c.png"),
    "latest": ("latest/a.png", "my.train/b.png", "Train/c.png"),
    "brackets": ("a[1].png", "b*?.png", "set [2]/c.png", "d ü ñ.png", "e::f.png", "#g%20h.png"),
    "endings": ("a.PNG", "b.gif", "c.jfif", "d.avif", "e.TIF", "f.JPEG", "g.bmp", "h.webp"),
}


def test_reader_uses_every_image_whatever_it_is_called(tmp_path_factory: pytest.TempPathFactory) -> None:
    for write in (with_texts, with_metadata):
        for name in NAMES:
            tmp_path = tmp_path_factory.mktemp("case")
            names = NAMES[name]
            data, reading = load(write(tmp_path / "da[t]a * test", *names))
            assert sorted(data["text"][:]) == sorted(f"of {name}" for name in names)
            assert reading.left_out == {}


def test_reader_takes_the_split_train_and_counts_the_others(tmp_path: Path) -> None:
    folder = with_texts(tmp_path, "train/a.png", "train/more/b.png", "val/c.png", "test/d.png", "test/e.png")
    save(folder / "cover.png")
    data, reading = load(folder)
    assert sorted(captions_of(data)) == ["a.png", "b.png"]
    assert left_out(reading) == {"in the split val": 1, "in the split test": 2, "outside of the splits": 1}
    with_metadata(tmp_path / "other", "train/a.png", "train/b.png", "test/c.png", "d.png")
    data, reading = load(tmp_path / "other")
    assert sorted(captions_of(data)) == ["a.png", "b.png"]
    assert left_out(reading) == {"in the split test": 1, "outside of the splits": 1}


def test_reader_refuses_a_split_beside_data_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a folder train, which is a split, and beside it \['cars'\]"):
        load(with_texts(tmp_path / "a", "train/a.png", "cars/b.png"))
    with pytest.raises(DataError, match=r"has the splits \['val', 'test'\], none of \['train'\]"):
        load(with_texts(tmp_path / "b", "test/a.png", "val/b.png"))


def test_reader_counts_everything_that_it_leaves_out(tmp_path: Path) -> None:
    folder = with_metadata(tmp_path / "data", "0.png", "1.png", "2.png")
    for name in ("unlisted.png", "._0.png", ".ipynb_checkpoints/0.png", "__MACOSX/._0.png"):
        save(folder / name)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "notes.pdf", "readme.txt", "0.png~"):
        (folder / name).write_text("x")
    (folder / "empty.png").write_bytes(b"")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "itself").symlink_to("itself")
    os.mkfifo(folder / "pipe.png")
    write_table(folder / "stray.parquet", ["a", "b"])
    data, reading = load(folder)
    assert sorted(captions_of(data)) == ["0.png", "1.png", "2.png"]
    assert left_out(reading) == {
        "not listed in metadata.jsonl": 1,
        "not an image": 4,
        "hidden": 2,
        "of the operating system": 2,
        "in hidden folders": 1,
        "in folders of the operating system": 1,
        "empty (0 bytes)": 1,
        "a broken link": 2,
        "a link to a folder above it": 1,
        "not a regular file": 1,
    }
    assert reading.line().startswith(f"{folder}: found 19, trained on 3, left out 16: 4 not an image")
    assert reading.to_dict()["examples"]["not listed in metadata.jsonl"] == ["unlisted.png"]


def test_reader_follows_links(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "a.png").with_suffix(".txt").write_text("a")
    folder = with_texts(tmp_path / "data", "b.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (folder / "c.png").symlink_to(folder / "b.png")
    (folder / "c.txt").symlink_to(folder / "b.txt")
    data, reading = load(folder)
    assert captions_of(data) == {"a.png": "a", "b.png": "of b.png", "c.png": "of b.png"}
    assert reading.left_out == {}
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    assert len(load(tmp_path / "link")[0]) == 3


def test_reader_skips_what_a_run_has_left_in_the_data(tmp_path: Path) -> None:
    folder = with_texts(tmp_path, "a.png", "cats/b.png")
    save(folder / "out" / "before" / "0.png")
    (folder / "out" / "run.json").write_text("{}")
    data, reading = load(folder)
    assert sorted(captions_of(data)) == ["a.png", "b.png"]
    assert left_out(reading) == {"in the output folder of a run": 2}


def test_reader_says_why_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_text("x")
    describe(tmp_path, {"clip.mp4": "x"})
    with pytest.raises(DataError, match=r"training set is empty. .*found 1, trained on 0, left out 1: 1 a video"):
        load(tmp_path)


def test_reader_shows_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = with_texts(tmp_path, "a.png")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes((folder / "a.png").read_bytes())
    _, reading = load(folder)
    assert reading.to_dict()["examples"] == {"named in bytes that are not UTF-8": ["\\udcff.png"]}
    json.dumps(reading.to_dict()).encode()


def test_reader_finds_the_files_that_metadata_names(tmp_path: Path) -> None:
    folder = tmp_path / "data [1]"
    for name in ("a.png", "sub/b.png", "sub/deep er/c.png", ".hidden/d.png", "cafe\u0301.png", "no_ending"):
        save(folder / name if "." in name else folder / f"{name}.png")
    (folder / "no_ending.png").rename(folder / "no_ending")
    outside = save(tmp_path / "outside.png")
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    names = ("./a.png", str(tmp_path / "link" / "sub" / "b.png"), "sub\\deep er\\c.png", ".hidden/d.png",
             "caf\u00e9.png", "no_ending", "../outside.png")  # fmt: skip
    describe(folder, {name: str(row) for row, name in enumerate(names)})
    data, reading = load(folder)
    assert data["text"][:] == [str(row) for row in range(7)]
    assert reading.left_out == {}
    assert f"1 images lie outside of the folder, for example {outside}" in reading.notes


def test_reader_reads_metadata_that_lies_alone_and_in_sub_folders(tmp_path: Path) -> None:
    images = [save(tmp_path / "images" / f"{row}.png") for row in range(2)]
    (tmp_path / "alone").mkdir()
    describe(tmp_path / "alone", {str(path): path.name for path in images})
    assert captions_of(load(tmp_path / "alone")[0]) == {"0.png": "0.png", "1.png": "1.png"}
    with_metadata(tmp_path / "two" / "a", "0.png")
    with_metadata(tmp_path / "two" / "b", "1.png")
    assert captions_of(load(tmp_path / "two")[0]) == {"0.png": "of 0.png", "1.png": "of 1.png"}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_reader_reads_files_of_any_editor(tmp_path: Path, ending: str, mark: str) -> None:
    text = ["file_name,text", 'a.png,"one, two"', "b.png,7", 'c.png,"an ""ä"""', ""]
    lines = [json.dumps({"file_name": f"{name}.png", "text": name}) for name in "abc"]
    for kind, content in (("csv", text), ("jsonl", [*lines, ""])):
        for name in "abc":
            save(tmp_path / kind / f"{name}.png")
        (tmp_path / kind / f"metadata.{kind}").write_bytes((mark + ending.join(content)).encode())
    for name in "abc":
        save(tmp_path / "txt" / f"{name}.png")
        (tmp_path / "txt" / f"{name}.TXT").write_bytes(f"{mark}{ending}  {name} ä {ending}".encode())
    assert load(tmp_path / "csv")[0]["text"][:] == ["one, two", "7", 'an "ä"']
    assert load(tmp_path / "jsonl")[0]["text"][:] == ["a", "b", "c"]
    assert load(tmp_path / "txt")[0]["text"][:] == ["a ä", "b ä", "c ä"]


def test_reader_reads_metadata_in_parquet_and_other_columns(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    columns = {"edited_file_name": ["a.png"], "caption": [3], "tags": [["x"]]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "metadata.parquet")
    data, _ = load(tmp_path, image_column="edited", caption_column="caption")
    assert captions_of(data) == {"a.png": "3"}
    with pytest.raises(DataError, match=r"--image_column 'image' is not a column .* \['edited', 'caption', 'tags'\]"):
        load(tmp_path, caption_column="caption")


def test_reader_turns_numbers_into_text_and_keeps_lists(tmp_path: Path) -> None:
    folder = with_metadata(tmp_path, "a.png", "b.png", "c.png", "d.png")
    describe(folder, {"a.png": 5, "b.png": 0.25, "c.png": "text", "d.png": "other"}, tags={"mixed": 1})
    assert load(folder)[0]["text"][:] == ["5", "0.25", "text", "other"]
    describe(folder, {"a.png": 5, "b.png": ["x", 2], "c.png": "text", "d.png": ["y"]})
    data, reading = load(folder)
    assert data["text"][:] == [["5"], ["x", "2"], ["text"], ["y"]]
    assert any("one is drawn in every epoch" in note for note in reading.notes)


def test_reader_takes_every_line_of_a_text_as_a_caption(tmp_path: Path) -> None:
    folder = with_texts(tmp_path, "a.png", "b.png")
    (folder / "a.txt").write_text("one\n\n  two \n")
    (folder / "b.txt").rename(folder / "b.caption")
    data, _ = load(folder, caption_column="whatever")
    assert captions_of(data) == {"a.png": ["one", "two"], "b.png": ["of b.png"]}


def test_reader_converts_captions_of_tables(tmp_path: Path) -> None:
    write_table(tmp_path / "lists" / "a.parquet", [["x", "y"], ["z"]])
    assert load(tmp_path / "lists")[0]["text"][:] == [["x", "y"], ["z"]]
    write_table(tmp_path / "numbers" / "a.parquet", [1, 2])
    assert load(tmp_path / "numbers")[0]["text"][:] == ["1", "2"]
    path = write_table(tmp_path / "classes.parquet", ["x", "y"], labels=[1, 0])
    data = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    data = data.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))
    data.save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved", caption_column="label")[0]["text"][:] == ["dog", "cat"]


def test_reader_takes_the_split_train_of_parquet_files_and_saved_data(tmp_path: Path) -> None:
    for split, count in (("train-00000-of-00002", 2), ("train-00001-of-00002", 1), ("test-0", 3), ("validation-0", 1)):
        write_table(tmp_path / "hub" / "data" / f"{split}.parquet", [split] * count)
    (tmp_path / "hub" / "README.md").write_text("words")
    save(tmp_path / "hub" / "assets" / "picture.png")
    data, reading = load(tmp_path / "hub")
    assert set(data["text"][:]) == {"train-00000-of-00002", "train-00001-of-00002"}
    assert left_out(reading) == {"not a parquet file": 2, "in the split test": 3, "in the split validation": 1}
    named, _ = load_by_dataset_name(tmp_path / "hub")
    assert len(named) == 3
    parts = datasets.DatasetDict({"train": data, "test": data.select([0])})
    parts.save_to_disk(tmp_path / "saved")
    again, reading = load(tmp_path / "saved")
    assert again["text"][:] == data["text"][:]
    assert left_out(reading) == {"in the split test": 1}
    write_table(tmp_path / "plain" / "training.parquet", ["a"])
    write_table(tmp_path / "plain" / "test_0.parquet", ["b"])
    assert sorted(load(tmp_path / "plain")[0]["text"][:]) == ["a", "b"]


def load_by_dataset_name(folder: Path) -> tuple[datasets.Dataset, Reading]:
    report = DataReport()
    data = load_captioned_images(dataset_name=str(folder), resolution=8, report=report)
    return data, report.readings[0]


def test_reader_reads_a_folder_by_the_other_flag_alike(tmp_path: Path) -> None:
    folder = with_texts(tmp_path / "images", "toy train/a.png", "cars/b.png")
    assert len(load_by_dataset_name(folder)[0]) == 2


def test_reader_leaves_large_parquet_files_on_disk_whatever_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoprog_diffusion.data.tables.IN_MEMORY", 0)
    write_table(tmp_path / "da[t]a" / "a*.parquet", ["x"])
    write_table(tmp_path / "da[t]a" / "b [1].parquet", ["y"])
    assert load(tmp_path / "da[t]a", cache_dir=str(tmp_path / "cache"))[0]["text"][:] == ["x", "y"]


def test_reader_draws_samples_by_the_seed(tmp_path: Path) -> None:
    folder = with_texts(tmp_path, *(f"{row:02d}.png" for row in range(20)))
    first, reading = load(folder, max_train_samples=5, seed=1)
    assert first["text"][:] == load(folder, max_train_samples=5, seed=1)[0]["text"][:]
    assert first["text"][:] == sorted(first["text"][:])
    assert first["text"][:] != load(folder, max_train_samples=5, seed=2)[0]["text"][:]
    assert first["text"][:] != [f"of {row:02d}.png" for row in range(5)]
    assert left_out(reading) == {"beyond --max_train_samples 5": 15}
    assert len(load(folder, max_train_samples=100)[0]) == 20
