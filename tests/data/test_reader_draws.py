"""One of several captions is drawn in every epoch, by seed, epoch and row: the same in any worker, after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from autoprog_diffusion.data.caption_text import first_captions, has_lists
from autoprog_diffusion.data.captions import Captions
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.training.build import RowDataset
from autoprog_diffusion.training.recipe_arguments import Arguments, DataArguments, TrainArguments


TEXTS = [["a", "b", "c"], ["d"], ["e", "f"]]


def captions_of(texts: Any, folder: Path, accelerator: Accelerator) -> Captions:
    """Captions of letters: tokens (1, 1) of the letter's number."""

    def encode(captions: list[str]) -> tuple[Tensor, Tensor]:
        numbers = torch.tensor([float(ord(caption)) for caption in captions])
        return numbers.view(-1, 1, 1), numbers.new_zeros(len(captions), 0)

    captions = Captions(texts, encode, [nn.Linear(1, 1)], accelerator, folder=folder)
    captions.ready()
    return captions


def letters(captions: Captions, rows: Tensor, draws: Tensor | None = None) -> list[str]:
    return [chr(int(number)) for number in captions.draw(rows, draws)[0].flatten()]


def rows_of(texts: list[Any], seed: int = 0) -> RowDataset:
    columns = {"image": ["x.png"] * len(texts), "text": texts}
    data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    return RowDataset(data, Arguments(data=DataArguments(), train=TrainArguments(seed=seed)), None)


def test_reader_draws_one_caption_of_a_list(tmp_path: Path, accelerator: Accelerator) -> None:
    captions = captions_of(TEXTS, tmp_path, accelerator)
    rows = torch.tensor([0, 0, 0, 2, 2, 1])
    assert letters(captions, rows, torch.tensor([0, 4, 5, 7, 8, 9])) == ["a", "b", "c", "f", "e", "d"]
    with pytest.raises(DataError, match="rows have several captions: give `draws`"):
        captions.draw(rows)
    assert letters(captions, torch.tensor([1])) == ["d"]


def test_reader_draws_by_seed_epoch_and_row(tmp_path: Path, accelerator: Accelerator) -> None:
    captions = captions_of(TEXTS * 8, tmp_path, accelerator)
    rows = torch.arange(24)

    def drawn(epoch: int, seed: int = 0) -> list[str]:
        items = rows_of(TEXTS * 8, seed)
        items.epoch = epoch
        return letters(captions, rows, torch.stack([items[row]["draw"] for row in range(24)]))

    epochs = [drawn(epoch) for epoch in range(12)]
    assert epochs[3] == drawn(3)
    assert epochs[0] != epochs[1]
    assert epochs[0] != drawn(0, seed=1)
    for row, texts in enumerate(TEXTS * 8):
        assert {epoch[row] for epoch in epochs} == set(texts)


def test_reader_leaves_batches_of_single_captions_as_they_are() -> None:
    assert rows_of(["a", "b"])[1] == {"index": 1}
    assert set(rows_of([["a"], ["b", "c"]])[1]) == {"index", "draw"}


def test_reader_titles_pictures_by_the_first_caption() -> None:
    lists = datasets.Dataset.from_dict({"text": TEXTS})
    plain = datasets.Dataset.from_dict({"text": ["a", "b"]})
    assert (has_lists(lists), has_lists(plain)) == (True, False)
    assert first_captions(lists, 2) == ("a", "d")
    assert first_captions(plain, 6) == ("a", "b")
