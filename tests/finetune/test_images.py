from __future__ import annotations

import gc
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from autoprog_diffusion.data.images import DataError, check_batch, load_captioned_images, read_image, to_pixels

from .tiny import COUNT, parse, write_images


def load(tmp_path: Path, *flags: object, folder: Path | None = None) -> datasets.Dataset:
    where = () if folder is None else ("--train_data_dir", folder)
    return load_captioned_images(parse(*where, *flags).data, 16, str(tmp_path / "datasets"))


def relabel(folder: Path, change: dict[int, dict | None]) -> Path:
    """Replace (or, with None, delete) lines of the metadata."""
    path = folder / "metadata.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [change.get(index, line) for index, line in enumerate(lines)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))
    return folder


def test_a_folder_gives_images_with_their_captions(tmp_path: Path, images_dir: Path) -> None:
    data = load(tmp_path, folder=images_dir)
    assert data.column_names == ["image", "text"]
    captions = {json.loads(line)["text"] for line in (images_dir / "metadata.jsonl").read_text().splitlines()}
    assert set(data["text"][:]) == captions
    for index in (0, 5, 23):
        name = data.cast_column("image", datasets.Image(decode=False))[index]["image"]["path"]
        assert data[index]["text"] == f"picture {'abcdefghijklmnopqrstuvwxyz'[int(Path(name).stem)]}"


def test_a_parquet_folder_and_a_data_set_name(tmp_path: Path, images_dir: Path) -> None:
    data = load(tmp_path, folder=images_dir)
    (tmp_path / "parquet").mkdir()
    embedded = data.map(lambda row: row, features=data.features)
    embedded.rename_columns({"image": "picture", "text": "words"}).to_parquet(tmp_path / "parquet" / "a.parquet")
    columns = ("--image_column", "picture", "--caption_column", "words")
    for source in ("--train_data_dir", "--dataset_name"):
        again = load(tmp_path, source, tmp_path / "parquet", *columns)
        assert again.column_names == ["image", "text"]
        assert again["text"][:] == data["text"][:]
        assert np.array_equal(read_image(again, 3), read_image(data, 3))


def test_max_train_samples_takes_the_first(tmp_path: Path, images_dir: Path) -> None:
    data = load(tmp_path, folder=images_dir)
    assert load(tmp_path, "--max_train_samples", 3, folder=images_dir)["text"][:] == data["text"][:3]
    assert len(load(tmp_path, "--max_train_samples", 1000, folder=images_dir)) == COUNT


def test_zero_samples_are_refused(tmp_path: Path, images_dir: Path) -> None:
    with pytest.raises(DataError, match="training set is empty"):
        load(tmp_path, "--max_train_samples", 0, folder=images_dir)


def test_by_default_the_emoji_of_the_training_split_are_used(tmp_path: Path) -> None:
    data = load(tmp_path, "--max_train_samples", 4)
    assert read_image(data, 0).size == (16, 16)
    assert "grinning face" in load(tmp_path)["text"][:]


def test_two_sources_are_refused(tmp_path: Path, images_dir: Path) -> None:
    with pytest.raises(DataError, match="--train_data_dir and --dataset_name are both given"):
        load(tmp_path, "--dataset_name", "x", folder=images_dir)


@pytest.mark.parametrize("make", ["missing", "empty", "nested", "file"])
def test_a_folder_without_files_is_refused(tmp_path: Path, make: str) -> None:
    folder = tmp_path / "data"
    if make == "file":
        folder.write_text("")
    elif make != "missing":
        (folder / "inner" if make == "nested" else folder).mkdir(parents=True)
    with pytest.raises(DataError, match=r"data is not a folder with files in it"):
        load(tmp_path, folder=folder)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "readme.txt").write_text("nothing here")
    with pytest.raises(DataError):
        load(tmp_path, folder=tmp_path / "data")


def test_a_missing_data_set_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"the training set .*nowhere cannot be loaded"):
        load(tmp_path, "--dataset_name", tmp_path / "nowhere")


def test_pictures_without_captions_are_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "data", 4)
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(DataError, match=r"--caption_column 'text' is not a column.*metadata\.jsonl"):
        load(tmp_path, folder=folder)


@pytest.mark.parametrize(("flag", "name"), [("--image_column", "img"), ("--caption_column", "caption")])
def test_a_wrong_column_is_refused_with_those_there_are(
    tmp_path: Path, images_dir: Path, flag: str, name: str
) -> None:
    with pytest.raises(DataError, match=rf"{flag} '{name}' is not a column of the data; it has \['image', 'text'\]"):
        load(tmp_path, flag, name, folder=images_dir)


@pytest.mark.parametrize("text", ["", "   ", None])
def test_an_empty_caption_is_refused_with_its_file(tmp_path: Path, text: str | None) -> None:
    folder = relabel(write_images(tmp_path / "data", 5), {3: {"file_name": "03.png", "text": text}})
    with pytest.raises(DataError, match=r"row 3 of the training set has no caption \(.*03\.png\)"):
        load(tmp_path, folder=folder)


def test_captions_that_are_not_text_are_refused(tmp_path: Path) -> None:
    change = {index: {"file_name": f"{index:02d}.png", "text": index} for index in range(4)}
    folder = relabel(write_images(tmp_path / "data", 4), change)
    with pytest.raises(DataError, match=r"row 0 of the training set has no caption.*got 0"):
        load(tmp_path, folder=folder)


def test_a_picture_that_the_metadata_forgets_is_never_trained_without_a_caption(tmp_path: Path) -> None:
    folder = relabel(write_images(tmp_path / "data", 5), {3: None})
    try:
        data = load(tmp_path, folder=folder)
    except DataError:
        return
    assert len(data) == 4
    assert all(data["text"][:])


@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # datasets leaves a file open that it cannot decode
def test_a_truncated_picture_is_refused_with_its_file(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "data", 5)
    content = (folder / "02.png").read_bytes()
    (folder / "02.png").write_bytes(content[: len(content) // 2])
    data = load(tmp_path, folder=folder)
    assert read_image(data, 1).size == (40, 32)
    with pytest.raises(DataError, match=r"image 2 of the training set cannot be decoded \(.*02\.png\)"):
        read_image(data, 2)
    gc.collect()


@pytest.mark.parametrize("content", [b"", b"not a picture at all"])
def test_a_file_that_is_no_picture_is_refused_with_its_file(tmp_path: Path, content: bytes) -> None:
    folder = write_images(tmp_path / "data", 5)
    (folder / "02.png").write_bytes(content)
    data = load(tmp_path, folder=folder)
    with pytest.raises(DataError, match=r"image 2 of the training set cannot be decoded \(.*02\.png\)"):
        read_image(data, 2)


def test_a_picture_that_is_gone_is_refused_with_its_file(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "data", 5)
    data = load(tmp_path, folder=folder)
    (folder / "02.png").unlink()
    with pytest.raises(DataError, match=r"image 2 of the training set cannot be decoded.*02\.png"):
        read_image(data, 2)


def test_fewer_images_than_a_batch_are_refused() -> None:
    check_batch(8, 8)
    with pytest.raises(DataError, match=r"7 images, fewer than one batch of 8.*--train_batch_size"):
        check_batch(7, 8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16"])
def test_every_mode_becomes_three_channels_in_range(mode: str) -> None:
    grey = Image.fromarray(np.linspace(0, 255, 48 * 32).reshape(48, 32).astype(np.uint8))
    image = Image.fromarray(np.asarray(grey, np.uint16)) if mode == "I;16" else grey.convert("RGB").convert(mode)
    pixels = to_pixels(image, 32, parse().data)
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.float32
    assert -1 <= pixels.min() < pixels.max() <= 1


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    pixels = to_pixels(image, 8, parse().data)
    assert torch.equal(pixels[:, 0, 0], torch.tensor([1.0, -1.0, -1.0]))
    assert torch.equal(pixels[:, 4, 4], torch.ones(3))
    palette = Image.new("P", (8, 8), 0)
    palette.info["transparency"] = 0
    assert torch.equal(to_pixels(palette, 8, parse().data), torch.ones(3, 8, 8))


@pytest.mark.parametrize("size", [(30, 90), (90, 30), (33, 32), (7, 400), (32, 32), (5, 5)])
def test_any_shape_gives_a_full_square(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    for source in (None, generator):
        assert to_pixels(Image.new("RGB", size), 32, parse().data, source).shape == (3, 32, 32)


def test_without_a_generator_the_centre_is_cropped() -> None:
    array = np.zeros((8, 24, 3), np.uint8)
    array[:, 8:16] = 255
    assert torch.equal(to_pixels(Image.fromarray(array), 8, parse("--random_flip").data), torch.ones(3, 8, 8))


def test_crops_are_random_cover_both_ends_and_can_be_switched_off() -> None:
    image = Image.fromarray(np.tile(np.arange(12, dtype=np.uint8)[None, :, None], (8, 1, 3)))

    def lefts(*flags: str) -> set[int]:
        generator = torch.Generator().manual_seed(0)
        crops = [to_pixels(image, 8, parse(*flags).data, generator) for _ in range(60)]
        return {round(float((crop[0, 0, 0] + 1) * 127.5)) for crop in crops}

    assert lefts() == {0, 1, 2, 3, 4}
    assert lefts("--center_crop") == {2}


def test_flips_mirror_half_of_the_images() -> None:
    image = Image.fromarray(np.tile(np.arange(8, dtype=np.uint8)[None, :, None], (8, 1, 3)))
    generator, plain = torch.Generator().manual_seed(0), to_pixels(image, 8, parse().data)
    args = parse("--random_flip").data
    crops = [to_pixels(image, 8, args, generator) for _ in range(100)]
    flipped = [torch.equal(crop, plain.flip(-1)) for crop in crops]
    assert all(flip or torch.equal(crop, plain) for flip, crop in zip(flipped, crops))
    assert 30 < sum(flipped) < 70


def test_pixels_are_the_image_of_the_chosen_filter() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    seen = set()
    for name in ("nearest", "bilinear", "bicubic", "lanczos", "box"):
        pixels = to_pixels(image, 16, parse("--image_interpolation_mode", name).data)
        literal = np.asarray(image.resize((16, 16), Image.Resampling[name.upper()]), np.float32) / 127.5 - 1
        assert torch.allclose(pixels, torch.from_numpy(literal).permute(2, 0, 1), atol=1e-6)
        seen.add(pixels.numpy().tobytes())
    assert len(seen) == 5
