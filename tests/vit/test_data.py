"""Batches of labelled images, corrupt ones, and an order that depends on seed and epoch alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.vit.training.arguments import Arguments, DataArguments, ModelArguments, TrainArguments
from autoprog_diffusion.vit.training.augment_settings import AugmentSettings
from autoprog_diffusion.vit.training.data import Decoded, Encoded, epoch_batches, make_loader
from autoprog_diffusion.vit.training.loading import check_sizes, load_data


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
    data = load_data(arguments(make_folder(tmp_path / "all"), val_fraction=0.2), size=8)
    assert data.classes == ("blue", "red")
    assert np.bincount(data.train.labels).tolist() == [8, 8]
    assert np.bincount(data.val.labels).tolist() == [2, 2]
    assert isinstance(data.train, Decoded)
    for image, label in zip(data.train.images, data.train.labels):
        assert image.unique(dim=1).shape[1] >= 1
        assert tuple(image[:, 0, 0].tolist()) == COLOURS[data.classes[label]]


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
        list(make_loader(load_data(args, size=8).train, in_order(20), 0))
    args = dataclasses.replace(args, data=dataclasses.replace(args.data, corrupt="skip"))
    train = load_data(args, size=8).train
    batches = list(make_loader(train, in_order(len(train)), 0))
    assert "4.png" in caplog.text
    assert "3.png" in caplog.text
    assert sum(len(labels) for _, labels in batches) == 18
    for images, labels in batches:
        for image, label in zip(images, labels):
            assert tuple(image[:, 4, 4].tolist()) == COLOURS[("blue", "red")[label]]


def test_sizes_that_the_patch_does_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--img_size 30 .*4 pixels.*28"):
        check_sizes(30, (), 4)
    with pytest.raises(ConfigError, match=r"--resolutions 18 .*16"):
        check_sizes(32, (18, 32), 4)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_an_epoch_whose_order_depends_on_seed_and_epoch(world: int) -> None:
    def rows(epoch: int, seed: int = 5, start: int = 0) -> list[list[list[int]]]:
        return [
            list(epoch_batches(50, batch=4, seed=seed, epoch=epoch, start=start, rank=rank, world=world))
            for rank in range(world)
        ]

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
    train = load_data(args, size=8).train
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
    images, labels = rows[[2]]
    wanted = rows._full_size[2].float().view(3, 4, 2, 4, 2).mean((2, 4))
    assert (images[0].float() - wanted).abs().max() <= 0.5
    assert labels.tolist() == [2]
    rows.resize(8)
    assert torch.equal(rows.images, rows._full_size)


def test_images_are_set_aside_for_a_search(tmp_path: Path) -> None:
    args = arguments(make_folder(tmp_path / "all"))
    data = load_data(args, size=8, held_out=6)
    assert data.held_out is not None
    assert (len(data.train), len(data.held_out)) == (12, 6)
    with pytest.raises(DataError, match="more than half"):
        load_data(args, size=8, held_out=11)
