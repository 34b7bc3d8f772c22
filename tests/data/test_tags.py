"""Orders of tags, and captions that are dropped, by seed, epoch and row."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from autoprog_diffusion.data.captions import Captions
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.tags import TagSettings, tag_orders, with_tag_orders
from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.training.build import RowDataset
from autoprog_diffusion.training.recipe_arguments import Arguments, DataArguments, TrainArguments


TAGGED = "a cat,  black, sitting, outdoors"


def test_orders_keep_the_first_tags_and_all_of_the_others() -> None:
    orders = tag_orders(TAGGED, TagSettings(orders=50, keep=2, seed=1))
    assert len(orders) == 50
    assert orders[0] == TAGGED
    assert set(orders[1:]) == {"a cat, black, sitting, outdoors", "a cat, black, outdoors, sitting"}
    free = tag_orders(TAGGED, TagSettings(orders=2000, seed=1))
    split = [[tag.strip() for tag in order.split(",")] for order in free]
    assert all(sorted(tags) == ["a cat", "black", "outdoors", "sitting"] for tags in split)
    firsts = Counter(tags[0] for tags in split)
    assert all(400 < count < 600 for count in firsts.values())


def test_orders_depend_on_seed_and_caption_alone() -> None:
    settings = TagSettings(orders=5, seed=3)
    assert tag_orders(TAGGED, settings) == tag_orders(TAGGED, settings)
    assert tag_orders(TAGGED, settings) != tag_orders(TAGGED, TagSettings(orders=5, seed=4))


@pytest.mark.parametrize("caption", ["a cat", "a cat, black", "a cat, , black,", ""])
def test_what_cannot_change_its_place_stays_as_it_is_written(caption: str) -> None:
    assert tag_orders(caption, TagSettings(orders=4, keep=1)) == [caption]


def test_data_gets_lists_of_captions() -> None:
    data = datasets.Dataset.from_dict({"image": [0, 1], "text": [TAGGED, "a dog"]})
    settings = TagSettings(orders=3, keep=1)
    shuffled = with_tag_orders(data, settings)
    assert shuffled["text"][:] == [tag_orders(TAGGED, settings), ["a dog"]]
    assert with_tag_orders(data, TagSettings()) is data
    lists = with_tag_orders(datasets.Dataset.from_dict({"image": [0], "text": [[TAGGED, "x, y, z"]]}), settings)
    assert lists["text"][0] == tag_orders(TAGGED, settings) + tag_orders("x, y, z", settings)


def test_what_would_have_no_effect_is_refused() -> None:
    plain = datasets.Dataset.from_dict({"text": ["a dog", "a cat, black"]})
    with pytest.raises(DataError, match=r"--shuffle_tags 3 changes nothing.*behind the first 1"):
        with_tag_orders(plain, TagSettings(orders=3, keep=1))
    with pytest.raises(DataError, match="these images have no captions"):
        with_tag_orders(datasets.Dataset.from_dict({"label": [1]}), TagSettings(orders=3))
    for numbers, words in (((1, 0), "--shuffle_tags 1"), ((-2, 0), "--shuffle_tags -2"), ((2, -1), "--keep_tags -1")):
        with pytest.raises(ConfigError, match=f"{words} is not allowed"):
            TagSettings(*numbers)


def letters(texts: list[str]) -> tuple[Tensor, Tensor]:
    numbers = torch.tensor([float(ord(text[0])) if text else 0.0 for text in texts])
    return numbers.view(-1, 1, 1), -numbers.view(-1, 1)


def test_captions_are_dropped_by_seed_epoch_and_row(
    tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a", "b"] * 200
    data = datasets.Dataset.from_dict({"image": ["x.png"] * 400, "text": texts}).cast_column("image", datasets.Image())
    captions = Captions(texts, letters, [nn.Linear(1, 1)], accelerator, folder=tmp_path, empty=0.25)
    captions.ready()
    # Any task's flag is asked by its name.
    monkeypatch.setattr("autoprog_diffusion.training.build.drops_captions", lambda args: True)
    rows = torch.arange(400)

    def dropped(epoch: int, seed: int = 0) -> Tensor:
        items = RowDataset(data, Arguments(data=DataArguments(), train=TrainArguments(seed=seed)), None)
        items.epoch = epoch
        torch.manual_seed(epoch)
        state = torch.get_rng_state()
        draws = torch.stack([items[row]["draw"] for row in range(400)])
        _, pooled = captions.draw(rows, draws)
        assert torch.equal(torch.get_rng_state(), state)
        return pooled[:, 0] == 0

    first = dropped(0)
    assert 70 < int(first.sum()) < 130
    assert torch.equal(first, dropped(0))
    assert not torch.equal(first, dropped(1))
    assert not torch.equal(first, dropped(0, seed=1))
    with captions.all_kept():
        assert not dropped(0).any()
