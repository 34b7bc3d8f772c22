"""Labelled images from every kind of source, what is refused, and an order that depends on seed and epoch alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.vit.training import emoji
from autoprog_diffusion.vit.training.arguments import (
    Arguments,
    AugmentSettings,
    DataArguments,
    ModelArguments,
    TrainArguments,
)
from autoprog_diffusion.vit.training.data import Decoded, Encoded, EpochBatches, check_sizes, load_data, make_loader
from autoprog_diffusion.vit.training.pixels import random_window, read_pixels
from autoprog_diffusion.vit.training.sources import DataError, load_sources


COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def make_folder(root: Path, count: int = 10, classes: tuple[str, ...] = ("blue", "red"), side: int = 8) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (side, side + 2), COLOURS[name]).save(root / name / f"{index}.png")
    return root


def arguments(data: Path | str | None, *, size: int = 8, **values: object) -> Arguments:
    groups = {"data": DataArguments(), "train": TrainArguments(batch_size=4), "augment": AugmentSettings(crop="none")}
    groups["model"] = ModelArguments(img_size=size)  # type: ignore[assignment]
    groups["data"] = dataclasses.replace(groups["data"], train_data=str(data) if data else None, **values)
    return Arguments(**groups)  # type: ignore[arg-type]


def in_order(count: int, batch: int = 4) -> list[list[int]]:
    return [rows.tolist() for rows in torch.arange(count).split(batch)]


def test_a_folder_of_class_folders_is_split_by_class(tmp_path: Path) -> None:
    data = load_data(arguments(make_folder(tmp_path / "all"), val_fraction=0.2), multiple=4, hold_out=False)
    assert data.classes == ("blue", "red")
    assert np.bincount(data.train.labels).tolist() == [8, 8]
    assert np.bincount(data.val.labels).tolist() == [2, 2]
    assert isinstance(data.train, Decoded)
    for image, label in zip(data.train.images, data.train.labels):
        assert image.unique(dim=1).shape[1] >= 1
        assert tuple(image[:, 0, 0].tolist()) == COLOURS[data.classes[label]]


def test_a_folder_may_bring_its_validation_set(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", 5)
    make_folder(tmp_path / "val", 3)
    train, val = load_sources(DataArguments(train_data=str(tmp_path)), 8, 0)
    assert (len(train), len(val)) == (10, 6)


def test_parquet_files_and_saved_data_sets_are_read(tmp_path: Path) -> None:
    images = [Image.new("RGB", (8, 8), COLOURS[name]) for name in ("red", "blue") * 4]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["red", "blue"])})
    data = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 4}, features=features)
    data.to_parquet(tmp_path / "a.parquet")
    datasets.DatasetDict({"train": data, "test": data.select(range(4))}).save_to_disk(tmp_path / "saved")
    for name, sizes in (("a.parquet", (6, 2)), ("saved", (8, 4))):
        train, val = load_sources(DataArguments(train_data=str(tmp_path / name), val_fraction=0.25), 8, 0)
        assert (len(train), len(val)) == sizes
        assert list(train.classes) == ["red", "blue"]
        assert train.read(0).convert("RGB").getpixel((0, 0)) == COLOURS[train.classes[train.labels[0]]]
    with pytest.raises(DataError, match="no column .'picture'.*--image_column"):
        load_sources(DataArguments(train_data=str(tmp_path / "a.parquet"), image_column="picture"), 8, 0)


def test_an_npz_brings_its_split(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    test = np.array([0, 1, 0, 0, 1, 0], dtype=bool)
    np.savez(tmp_path / "a.npz", x=x, y=np.array([0, 0, 1, 0, 1, 1]), test=test, classes=np.array(["a", "b"]))
    data = load_data(arguments(tmp_path / "a.npz", size=4), multiple=4, hold_out=False)
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 2, 3, 5]  # type: ignore[union-attr]
    assert data.val.images.shape == (2, 3, 4, 4)  # type: ignore[union-attr]
    assert data.val.labels.tolist() == [0, 1]


def test_emoji_labels_cover_every_emoji_and_split_by_codepoint() -> None:
    labels = emoji.emoji_labels()
    assert set(labels.values()) == set(range(len(emoji.CLASSES)))
    subcategories = [name for names in emoji.CLASSES.values() for name in names]
    assert len(subcategories) == len(set(subcategories))
    held = [point for point in labels if emoji.is_held_out(point)]
    assert 0.15 < len(held) / len(labels) < 0.25
    counts = np.bincount([label for point, label in labels.items() if not emoji.is_held_out(point)])
    assert counts.min() >= 30  # per style


def test_the_default_data_holds_both_styles_of_a_codepoint_on_one_side() -> None:
    train, val = emoji.emoji_images(8)
    assert len(train) + len(val) == 2 * 1898
    assert len(val) % 2 == 0
    assert 0.15 < len(val) / (len(train) + len(val)) < 0.25


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "empty").mkdir(), r"class folder .*empty holds no image"),
        (lambda root: [path.unlink() for path in (root / "red").iterdir()], r"class folder .*red holds no image"),
        (lambda root: [*[p.unlink() for p in (root / "red").iterdir()], (root / "red").rmdir()], "at least 2"),
    ],
    ids=["empty class", "emptied class", "one class"],
)
def test_bad_folders_are_refused(tmp_path: Path, change: object, message: str) -> None:
    change(make_folder(tmp_path / "all"))  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        load_sources(DataArguments(train_data=str(tmp_path / "all")), 8, 0)


def test_other_bad_data_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "a", classes=("blue", "red"))
    make_folder(tmp_path / "b", classes=("blue", "green"))
    (tmp_path / "c").mkdir()
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 4, 4)), y=[0, 1], classes=["a", "b"])
    np.savez(tmp_path / "e.npz", x=np.zeros((2, 4, 4), dtype=np.uint8))
    wrong = {
        "differ in classes": DataArguments(train_data=str(tmp_path / "a"), val_data=str(tmp_path / "b")),
        "has no folders": DataArguments(train_data=str(tmp_path / "c")),
        "must be uint8": DataArguments(train_data=str(tmp_path / "d.npz")),
        r"has no \['y', 'classes'\]": DataArguments(train_data=str(tmp_path / "e.npz")),
        "there is no file": DataArguments(train_data=str(tmp_path / "f.npz")),
        "no file .*g.parquet": DataArguments(train_data=str(tmp_path / "g.parquet")),
    }
    for message, args in wrong.items():
        with pytest.raises(DataError, match=message):
            load_sources(args, 8, 0)


@pytest.mark.parametrize("memory", [1024, 0], ids=["in memory", "in workers"])
def test_corrupt_images_are_named_and_skipped_or_refused(
    tmp_path: Path, memory: int, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder(tmp_path / "all")
    (root / "red" / "3.png").write_bytes(b"not a picture")
    whole = (root / "blue" / "4.png").read_bytes()
    (root / "blue" / "4.png").write_bytes(whole[: len(whole) // 2])
    args = arguments(root, val_data=str(make_folder(tmp_path / "val")), memory=memory)
    with pytest.raises(DataError, match=r"4\.png.*--corrupt skip" if memory else r"png.*--corrupt skip"):
        list(make_loader(load_data(args, multiple=4, hold_out=False).train, in_order(20), 0))
    args = dataclasses.replace(args, data=dataclasses.replace(args.data, corrupt="skip"))
    train = load_data(args, multiple=4, hold_out=False).train
    batches = list(make_loader(train, in_order(len(train)), 0))
    assert "4.png" in caplog.text
    assert "3.png" in caplog.text
    assert sum(len(labels) for _, labels in batches) == (18 if memory else 20)
    for images, labels in batches:
        for image, label in zip(images, labels):
            assert tuple(image[:, 4, 4].tolist()) == COLOURS[("blue", "red")[label]]


def test_sizes_that_the_patch_does_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--img_size 30 .*4 pixels.*28"):
        check_sizes(arguments(None, size=30), 4)
    args = arguments(None, size=32)
    args = dataclasses.replace(args, growth=dataclasses.replace(args.growth, resolutions=(18, 32)))
    with pytest.raises(ConfigError, match=r"--resolutions 18 .*16"):
        check_sizes(args, 4)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_an_epoch_whose_order_depends_on_seed_and_epoch(world: int) -> None:
    def rows(epoch: int, seed: int = 5, start: int = 0) -> list[list[list[int]]]:
        return [list(EpochBatches(50, 4, seed, epoch, start, rank, world)) for rank in range(world)]

    first = rows(0)
    assert first == rows(0)
    assert first != rows(1)
    assert first != rows(0, seed=6)
    assert rows(0, start=2) == [batches[2:] for batches in first]
    seen = [row for batches in first for batch in batches for row in batch]
    assert len(seen) == len(set(seen)) == 50 // (4 * world) * 4 * world


def test_large_data_is_cropped_by_epoch_and_row_in_any_worker(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(6):
            Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / name / f"{index}.jpg")
    args = dataclasses.replace(arguments(tmp_path, memory=0), augment=AugmentSettings(crop="resized"))
    train = load_data(args, multiple=4, hold_out=False).train
    assert isinstance(train, Encoded)

    def images(workers: int) -> torch.Tensor:
        return torch.cat([batch for batch, _ in make_loader(train, in_order(10, 3), workers)])

    first = images(0)
    assert torch.equal(first, images(2))
    train.epoch = 1
    assert not torch.equal(first, images(0))
    train.resize(4)
    assert images(0).shape == (10, 3, 4, 4)


def test_small_data_is_averaged_down_once_per_stage() -> None:
    rows = Decoded(torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8), torch.arange(5))
    rows.resize(4)
    images, labels = rows[2]
    wanted = rows._whole[2].float().view(3, 4, 2, 4, 2).mean((2, 4))
    assert (images[0].float() - wanted).abs().max() <= 0.5
    assert labels.tolist() == [2]
    rows.resize(8)
    assert torch.equal(rows.images, rows._whole)


def test_windows_have_the_areas_and_ratios_that_were_asked_for() -> None:
    generator, args = torch.Generator().manual_seed(0), AugmentSettings(scale=(0.2, 0.5), ratio=(0.5, 2.0))
    for _ in range(200):
        top, left, height, width = random_window(60, 80, args, generator)
        assert 0 <= top <= 60 - height
        assert 0 <= left <= 80 - width
        assert 0.18 < height * width / 4800 < 0.53
        assert 0.45 < width / height < 2.2


def test_transparent_images_lie_on_white_and_grey_ones_become_rgb() -> None:
    assert read_pixels(Image.new("RGBA", (6, 6), (255, 0, 0, 0)), 4).unique().tolist() == [255]
    assert read_pixels(Image.new("L", (9, 4), 7), 4).unique().tolist() == [7]


def test_images_are_set_aside_for_a_search(tmp_path: Path) -> None:
    args = arguments(make_folder(tmp_path / "all"))
    args = dataclasses.replace(args, growth=dataclasses.replace(args.growth, search_samples=6))
    data = load_data(args, multiple=4, hold_out=True)
    assert data.held_out is not None
    assert (len(data.train), len(data.held_out)) == (12, 6)
    with pytest.raises(DataError, match="more than half"):
        load_data(arguments(tmp_path / "all"), multiple=4, hold_out=True)
