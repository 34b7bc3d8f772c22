"""Captions that cannot be used are refused, with the file and line that are to blame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autoprog_diffusion.data.errors import DataError

from .captioned import load, with_metadata, with_texts
from .folders import describe, save, write_table


def no_caption(folder: Path) -> None:
    with_texts(folder, "a.png", "b.png", "c.png")
    (folder / "b.txt").unlink()
    (folder / "c.txt").write_text(" \n")


def bad_line(name: str, content: bytes) -> Any:
    def write(folder: Path) -> None:
        save(folder / "a.png")
        (folder / name).write_bytes(content)

    return write


REFUSED = {
    "two sources": (
        lambda folder: with_metadata(with_texts(folder, "a.png"), "a.png"),
        r"captions in metadata.jsonl \(column 'text'\) and in 1 text files",
    ),
    "two texts": (
        lambda folder: (with_texts(folder, "a.png") / "a.caption").write_text("x"),
        r"\['a.caption', 'a.txt'\] are captions of the same image",
    ),
    "no text": (no_caption, r"2 of the 3 images of .* have no caption, for example \['b.png', 'c.png'\]"),
    "two metadata": (
        lambda folder: (with_metadata(folder, "a.png") / "metadata.csv").write_text("file_name,text\n"),
        r"2 metadata files in one folder, \['metadata.csv', 'metadata.jsonl'\]",
    ),
    "missing file": (
        lambda folder: describe(with_metadata(folder, "sub/a.png"), {"sub/a.png": "x", "a.png": "y", "c.png": "z"}),
        r"metadata.jsonl line 2: there is no file 'a.png'. There is sub/a.png.*2 rows name files",
    ),
    "address": (bad_line("metadata.jsonl", b'{"file_name": "https://x/a.png", "text": "a"}'), "is an address"),
    "half a letter": (
        bad_line("metadata.jsonl", b'{"file_name": "\\udcff.png", "text": "a"}'),
        r"metadata.jsonl line 1: there is no file '\\udcff.png'",
    ),
    "no name": (
        bad_line("metadata.jsonl", b'{"file_name": "a.png", "text": "a"}\n{"text": "a"}'),
        "metadata.jsonl line 2 has no file_name: got None",
    ),
    "no JSON": (bad_line("metadata.jsonl", b'\n{"file_name": "a.png",'), "metadata.jsonl line 2 is not JSON"),
    "no object": (bad_line("metadata.jsonl", b"[1]"), r"metadata.jsonl line 1 is \[1\]"),
    "no columns": (bad_line("metadata.csv", b"name;text\na.png;x"), r"\['name', 'text'\], but no file_name"),
    "comma": (bad_line("metadata.csv", b"file_name,text\na.png,one, two"), "line 2 has not as many fields"),
    "short": (bad_line("metadata.csv", b"file_name,text\na.png"), "line 2 has not as many fields"),
    "Latin-1": (bad_line("metadata.csv", b"file_name,text\na.png,\xe4"), "metadata.csv line 2 is not UTF-8"),
    "Latin-1 text": (bad_line("a.txt", b"one\n\xe4"), "a.txt line 2 is not UTF-8"),
    "UTF-16": (bad_line("a.txt", "one".encode("utf-16")), "a.txt line 1 is not UTF-8"),
    "no parquet": (bad_line("metadata.parquet", b"one"), "metadata.parquet cannot be read"),
    "other column": (
        bad_line("metadata.jsonl", b'{"file_name": "a.png", "caption": "a"}'),
        r"--caption_column 'text' is not a column of the data; it has \['image', 'caption'\]",
    ),
    "nothing": (lambda folder: save(folder / "a.png"), r"'text' is not a column of the data; it has \['image'\]"),
    "no image": (
        bad_line("readme.md", b"x") and (lambda folder: (folder / "notes.pdf").write_text("x")),
        r"holds no image and no parquet file; it holds for example \['notes.pdf'\]",
    ),
    "mixed tables": (
        lambda folder: [write_table(folder / name, ["a"]) for name in ("train-0.parquet", "extra.parquet")],
        r"splits \['train'\], and beside them \['extra.parquet'\]",
    ),
    "no train": (
        lambda folder: write_table(folder / "test-0.parquet", ["a"]),
        r"has the splits \['test'\], none of \['train'\]",
    ),
}  # fmt: skip


def test_reader_refuses_by_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in REFUSED:
        tmp_path = tmp_path_factory.mktemp("case")
        write, message = REFUSED[name]
        folder = tmp_path / "data"
        folder.mkdir()
        write(folder)
        with pytest.raises(DataError, match=message):
            load(folder)


READER_REFUSES_CAPTIONS = ["", "  ", None, float("nan"), [], [""], ["a", None], {"a": 1}, True, [["a"]], "\ud83d"]


def test_reader_refuses_captions_that_are_none(tmp_path_factory: pytest.TempPathFactory) -> None:
    for value in READER_REFUSES_CAPTIONS:
        tmp_path = tmp_path_factory.mktemp("case")
        folder = with_metadata(tmp_path, "a.png", "b.png", "c.png")
        describe(folder, {"a.png": "x", "b.png": value, "c.png": value})
        message = (
            r"row 1 of the training set has no caption \(metadata.jsonl line 2, .*b.png\): got .* 2 rows have none"
        )
        with pytest.raises(DataError, match=message):
            load(folder)
