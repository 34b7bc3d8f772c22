"""Images with captions from every kind of source, and the sets that are refused."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from autoprog_diffusion.data.captioned import load_captioned_images
from autoprog_diffusion.data.decode import read_image
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.sources import check_batch

from .folders import COUNT, write_captioned


def load(tmp_path: Path, folder: Path | None = None, **values: Any) -> datasets.Dataset:
    where = None if folder is None else str(folder)
    return load_captioned_images(train_data_dir=where, resolution=16, cache_dir=str(tmp_path / "datasets"), **values)


@pytest.fixture(scope="session")
def images_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_captioned(tmp_path_factory.mktemp("images"))


def relabel(folder: Path, change: dict[int, dict | None]) -> Path:
    """Replace (or, with None, delete) lines of the metadata."""
    path = folder / "metadata.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [change.get(index, line) for index, line in enumerate(lines)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))
    return folder


def test_a_folder_gives_images_with_their_captions(tmp_path: Path, images_dir: Path) -> None:
    data = load(tmp_path, images_dir)
    assert data.column_names == ["image", "text"]
    captions = {json.loads(line)["text"] for line in (images_dir / "metadata.jsonl").read_text().splitlines()}
    assert set(data["text"][:]) == captions
    for index in (0, 5, 23):
        name = data.cast_column("image", datasets.Image(decode=False))[index]["image"]["path"]
        assert data[index]["text"] == f"picture {'abcdefghijklmnopqrstuvwxyz'[int(Path(name).stem)]}"


def test_parquet_files_and_saved_data_sets_are_read_as_folders_and_by_name(tmp_path: Path, images_dir: Path) -> None:
    data = load(tmp_path, images_dir)
    (tmp_path / "parquet").mkdir()
    embedded = data.map(lambda row: row, features=data.features)
    embedded.rename_columns({"image": "picture", "text": "words"}).to_parquet(tmp_path / "parquet" / "a.parquet")
    data.save_to_disk(tmp_path / "saved")
    renamed = {"image_column": "picture", "caption_column": "words"}
    for where, columns in (
        ({"folder": tmp_path / "parquet"}, renamed),
        ({"dataset_name": str(tmp_path / "parquet")}, renamed),
        ({"folder": tmp_path / "saved"}, {}),
        ({"dataset_name": str(tmp_path / "saved")}, {}),
    ):
        again = load(tmp_path, **where, **columns)
        assert again.column_names == ["image", "text"]
        assert again["text"][:] == data["text"][:]
        assert np.array_equal(read_image(again, 3), read_image(data, 3))


def test_max_train_samples_takes_a_random_choice(tmp_path: Path, images_dir: Path) -> None:
    texts = load(tmp_path, images_dir)["text"][:]
    chosen = load(tmp_path, images_dir, max_train_samples=3)["text"][:]
    assert [texts.index(text) for text in chosen] == sorted(texts.index(text) for text in chosen)
    assert chosen != texts[:3]
    assert len(load(tmp_path, images_dir, max_train_samples=1000)) == COUNT


def test_zero_samples_are_refused(tmp_path: Path, images_dir: Path) -> None:
    with pytest.raises(DataError, match="--max_train_samples 0 leaves nothing"):
        load(tmp_path, images_dir, max_train_samples=0)


def test_by_default_the_emoji_of_the_training_split_are_used(tmp_path: Path) -> None:
    data = load(tmp_path, max_train_samples=4)
    assert read_image(data, 0).size == (16, 16)
    assert "grinning face" in load(tmp_path)["text"][:]


def test_two_sources_are_refused(tmp_path: Path, images_dir: Path) -> None:
    with pytest.raises(DataError, match="--train_data_dir and --dataset_name are both given"):
        load(tmp_path, images_dir, dataset_name="x")


def test_a_folder_without_files_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    for make in ("missing", "empty", "nested", "file"):
        tmp_path = tmp_path_factory.mktemp("case")
        folder = tmp_path / "data"
        if make == "file":
            folder.write_text("")
        elif make != "missing":
            (folder / "inner" if make == "nested" else folder).mkdir(parents=True)
        with pytest.raises(DataError, match=r"data is not a folder with files in it"):
            load(tmp_path, folder)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "readme.txt").write_text("nothing here")
    with pytest.raises(DataError):
        load(tmp_path, tmp_path / "data")


def test_a_missing_data_set_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"the data set .*nowhere cannot be loaded"):
        load(tmp_path, dataset_name=str(tmp_path / "nowhere"))


def test_pictures_without_captions_are_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = write_captioned(tmp_path / "data", 4)
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(DataError, match=r"--caption_column 'text' is not a column.*metadata\.jsonl"):
        load(tmp_path, folder)


@pytest.mark.parametrize(("flag", "name"), [("image_column", "img"), ("caption_column", "caption")])
def test_a_wrong_column_is_refused_with_those_there_are(
    tmp_path: Path, images_dir: Path, flag: str, name: str
) -> None:
    with pytest.raises(DataError, match=rf"--{flag} '{name}' is not a column of the data; it has \['image', 'text'\]"):
        load(tmp_path, images_dir, **{flag: name})


@pytest.mark.parametrize("text", ["", "   ", None])
def test_an_empty_caption_is_refused_with_its_file(tmp_path: Path, text: str | None) -> None:
    folder = relabel(write_captioned(tmp_path / "data", 5), {3: {"file_name": "03.png", "text": text}})
    with pytest.raises(DataError, match=r"row 3 of the training set has no caption \(.*03\.png\)"):
        load(tmp_path, folder)


def test_captions_that_are_numbers_become_text(tmp_path: Path) -> None:
    change = {index: {"file_name": f"{index:02d}.png", "text": index} for index in range(4)}
    folder = relabel(write_captioned(tmp_path / "data", 4), change)
    assert load(tmp_path, folder)["text"][:] == ["0", "1", "2", "3"]


def test_a_picture_that_the_metadata_forgets_is_never_trained_without_a_caption(tmp_path: Path) -> None:
    folder = relabel(write_captioned(tmp_path / "data", 5), {3: None})
    try:
        data = load(tmp_path, folder)
    except DataError:
        return
    assert len(data) == 4
    assert all(data["text"][:])


@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # datasets leaves a file open that it cannot decode
def test_a_truncated_picture_is_refused_with_its_file(tmp_path: Path) -> None:
    folder = write_captioned(tmp_path / "data", 5)
    content = (folder / "02.png").read_bytes()
    (folder / "02.png").write_bytes(content[: len(content) // 2])
    data = load(tmp_path, folder)
    assert read_image(data, 1).size == (40, 32)
    with pytest.raises(DataError, match=r"image 2 of the training set cannot be decoded \(.*02\.png\)"):
        read_image(data, 2)
    gc.collect()


def test_a_file_that_is_no_picture_is_refused_with_its_file(tmp_path: Path) -> None:
    folder = write_captioned(tmp_path / "data", 5)
    (folder / "02.png").write_bytes(b"not a picture at all")
    data = load(tmp_path, folder)
    with pytest.raises(DataError, match=r"image 2 of the training set cannot be decoded \(.*02\.png\)"):
        read_image(data, 2)


def test_a_picture_that_is_gone_is_refused_with_its_file(tmp_path: Path) -> None:
    folder = write_captioned(tmp_path / "data", 5)
    data = load(tmp_path, folder)
    (folder / "02.png").unlink()
    with pytest.raises(DataError, match=r"image 2 of the training set cannot be decoded.*02\.png"):
        read_image(data, 2)


def test_fewer_images_than_a_batch_are_refused() -> None:
    check_batch(8, 8)
    with pytest.raises(DataError, match=r"7 images, fewer than one batch of 8.*--train_batch_size"):
        check_batch(7, 8)
