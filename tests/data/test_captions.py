"""Cached text: every caption once, some dropped, anew after a change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from autoprog_diffusion.data.captions import Captions


TEXTS = ["b", "a", "", "b"]
NewCaptions = Callable[..., Captions]


@pytest.fixture
def new_captions(tmp_path: Path, accelerator: Accelerator) -> NewCaptions:
    """Captions of letters: tokens (2, 3) of the first letter's number, pooled (1,) its negative."""

    def make(encoder: nn.Module, texts: list[str] = TEXTS, empty: float = 0.0, calls: list | None = None) -> Captions:
        def encode(captions: list[str]) -> tuple[Tensor, Tensor]:
            if calls is not None:
                calls.extend(captions)
            numbers = torch.tensor([float(ord(caption[0])) if caption else 0.0 for caption in captions])
            return numbers.view(-1, 1, 1).expand(-1, 2, 3), -numbers.view(-1, 1)

        return Captions(texts, encode, [encoder], accelerator, folder=tmp_path, empty=empty)

    return make


def test_rows_get_their_captions(new_captions: NewCaptions) -> None:
    encoder = nn.Linear(2, 2)
    captions = new_captions(encoder)
    captions.ready()
    tokens, pooled = captions.draw(torch.tensor([3, 2, 1]))
    assert torch.equal(tokens, torch.tensor([98.0, 0.0, 97.0]).view(3, 1, 1).expand(3, 2, 3))
    assert torch.equal(pooled, torch.tensor([[-98.0], [0.0], [-97.0]]))
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.training


def test_captions_are_encoded_once_and_anew_after_a_change(new_captions: NewCaptions) -> None:
    encoder, calls = nn.Linear(2, 2), []
    first = new_captions(encoder, calls=calls)
    first.ready()
    first.ready()
    assert sorted(set(calls)) == ["", "a", "b"]
    calls.clear()
    new_captions(encoder, calls=calls).ready()
    assert calls == [""]  # the shape alone
    for again in ((encoder, [*TEXTS, "c"]), (nn.Linear(2, 2),)):
        calls.clear()
        new_captions(*again, calls=calls).ready()
        assert "b" in calls


def test_a_share_of_the_captions_is_dropped_by_the_global_random_state(new_captions: NewCaptions) -> None:
    captions, rows = new_captions(nn.Linear(2, 2), ["a", "b"], empty=0.25), torch.ones(1000, dtype=torch.long)
    captions.ready()
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(captions.draw(rows)[1])
    assert set(drawn[0].unique().tolist()) == {0.0, -98.0}
    assert 200 < (drawn[0] == 0).sum() < 300
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_without_dropping_the_random_state_is_left(new_captions: NewCaptions) -> None:
    captions, state = new_captions(nn.Linear(2, 2)), torch.get_rng_state()
    captions.ready()
    captions.draw(torch.tensor([0, 1]))
    assert torch.equal(torch.get_rng_state(), state)
