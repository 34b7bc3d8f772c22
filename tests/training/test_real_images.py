"""Images of a user's own data beside the drawn ones."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from autoprog_diffusion.training.real_images import real_rows
from autoprog_diffusion.training.samples import save_grid


def own_data(captions: list | None, side: tuple[int, int] = (20, 12)) -> datasets.Dataset:
    """Images of one colour each, its red channel ten times the row."""
    images = [Image.new("RGB", side, (10 * row, 0, 0)) for row in range(5)]
    columns = {"image": images} if captions is None else {"image": images, "text": captions}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


def reds(row: tuple) -> list[int | None]:
    return [None if image is None else int(np.array(image)[0, 0, 0]) for image in row[1]]


def test_titles_that_are_captions_get_their_images_cut_to_squares() -> None:
    ((label, images),) = real_rows(own_data(["a", "b", "c", "d", "e"]), ("d", "b"), 8)
    assert (label, [image.size for image in images if image]) == ("real", [(8, 8)] * 2)
    assert reds((label, images)) == [30, 10]


def test_equal_captions_show_different_images_while_there_are_any() -> None:
    (row,) = real_rows(own_data(["a", "toy", "toy", "b", "b"]), ("toy", "toy", "toy"), 8)
    assert reds(row) == [10, 20, None]


def test_one_of_several_captions_is_enough() -> None:
    (row,) = real_rows(own_data([["a", "b"], ["c"], ["d"], ["e"], ["f"]]), ("b", "unknown", "f"), 8)
    assert reds(row) == [0, None, 40]


def test_other_prompts_stand_beside_some_of_the_data(tmp_path: Path) -> None:
    for data in (own_data(["a", "b", "c", "d", "e"]), own_data(None)):
        (row,) = real_rows(data, ("a castle", "a dog"), 8)
        assert (row[0], reds(row)) == ("training data", [0, 10])
    (row,) = real_rows(own_data(None), tuple("abcdefgh"), 8)
    assert len(row[1]) == 5
    save_grid(tmp_path / "grid.png", tuple("abcdefgh"), [row, ("real", [None, row[1][0]])])
    assert (tmp_path / "grid.png").stat().st_size > 0
