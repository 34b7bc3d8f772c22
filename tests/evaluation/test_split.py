"""What is held out: by caption and picture, of every class, by seed, and not of small data."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from autoprog_diffusion.evaluation.overlap import count_across
from autoprog_diffusion.evaluation.split import choose_held_out


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8), "RGB")
        found.append(coarse.resize((24, 24), Image.Resampling.BICUBIC))
    return found


def again(image: Image.Image) -> Image.Image:
    """The same picture, larger and compressed."""
    buffer = io.BytesIO()
    image.resize((40, 40), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return Image.open(buffer).convert("RGB")


def table(images: Sequence[Image.Image], **columns: Sequence[Any]) -> datasets.Dataset:
    rows = []
    for image in images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue()})
    data = datasets.Dataset.from_dict({"image": rows, **columns})
    return data.cast_column("image", datasets.Image())


@pytest.fixture
def options(tmp_path: Path, accelerator: Any) -> dict[str, Any]:
    return {"seed": 0, "folder": tmp_path / "cache", "accelerator": accelerator}


def test_captions_and_near_duplicates_stay_on_one_side(options: dict[str, Any]) -> None:
    images = pictures(300)
    images += [again(image) for image in images[:60]]  # under captions of their own
    captions = [f"name {row // 2}" for row in range(300)] + [f"copy {row}" for row in range(60)]
    captions[1] = " NAME  0"
    data = table(images, text=captions)
    split = choose_held_out(data, 0.1, **options)
    assert len(split.held_out) == 36
    held = set(split.held_out)
    for first in range(0, 300, 2):
        assert (first in held) == (first + 1 in held)
    assert not held & set(range(60))
    assert not held & set(range(300, 360))
    assert split.duplicates > 0
    assert any("near-duplicates of them are trained on" in note for note in split.notes)
    trained, held_out = split.sides(data)
    assert len(trained) == 324
    assert set(trained["text"]).isdisjoint(held_out["text"])
    assert choose_held_out(data, 0.1, **options).held_out == split.held_out
    assert choose_held_out(data, 0.1, **{**options, "seed": 1}).held_out != split.held_out


def test_several_captions_of_a_row_join_their_rows(options: dict[str, Any]) -> None:
    captions = [[f"a {row}", f"b {row // 2}"] for row in range(320)]
    split = choose_held_out(table(pictures(320), text=captions), 0.1, **options)
    held = set(split.held_out)
    assert len(held) == 32
    for first in range(0, 320, 2):
        assert (first in held) == (first + 1 in held)


def test_captions_of_many_images_name_no_picture(options: dict[str, Any]) -> None:
    data = table(pictures(320), text=["a pokemon"] * 320)
    split = choose_held_out(data, 0.1, **options)
    assert len(split.held_out) == 32
    assert "1 different captions name 320 images: equal captions are on both sides" in split.notes


def test_every_class_gives_its_part_and_none_is_lost(options: dict[str, Any]) -> None:
    labels = [0] * 200 + [1] * 100 + [2] * 12 + [3] * 2
    split = choose_held_out(table(pictures(314), label=labels), 0.1, **options)
    counts = np.bincount([labels[row] for row in split.held_out], minlength=4).tolist()
    assert sum(counts) == 31
    assert counts[3] == 0
    assert counts[2] == 2
    assert min(counts[0], counts[1]) >= 14


def test_small_data_is_left_whole(options: dict[str, Any]) -> None:
    split = choose_held_out(table(pictures(100), text=[str(row) for row in range(100)]), 0.05, **options)
    assert split.held_out == []
    (note,) = split.notes
    assert "100 images are too few to hold some out (a share of 0.05 needs 320): there is no held-out loss" in note
    assert note.endswith("--validation_data_dir, or hold 16 of these out with --held_out_share 0.16")
    names = [str(row) for row in range(100)]
    assert len(choose_held_out(table(pictures(100), text=names), 0.16, **options).held_out) == 16
    (note,) = choose_held_out(table(pictures(31), text=list(map(str, range(31)))), 0.05, **options).notes
    assert note.endswith("Give images with --validation_data_dir")  # half of them is the most, and too few
    copies = [image for image in pictures(100) for _ in range(4)]
    split = choose_held_out(table(copies, text=[str(row) for row in range(400)]), 0.05, **options)
    assert split.held_out == []
    assert split.notes[-1] == "only 0 images could be held out: there is no held-out loss"


def test_images_of_a_validation_set_that_are_trained_on_are_counted(options: dict[str, Any]) -> None:
    own = pictures(20, seed=1)
    trained = table(pictures(50) + own[:7])
    del options["seed"]
    found = count_across(table([again(image) for image in own]), trained, **options)
    assert found is not None
    assert found.startswith("7 of 20 validation images are near-duplicates of images that are trained on")
    assert count_across(table(pictures(5, seed=9)), trained, **options) is None
