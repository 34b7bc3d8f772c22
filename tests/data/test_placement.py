"""Frozen parts come to the device while they are needed, and go back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from autoprog_diffusion.data.captions import Captions
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.placement import hold_narrow, is_narrow, on_device


CARD = torch.device("cuda:0")
HOME = torch.device("cpu")


class Traveller(nn.Linear):
    """A module that notes where it is sent to, and stays: this machine may have one device only."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.sent: list[Any] = []

    def to(self, *, device: Any) -> Traveller:  # type: ignore[override]
        self.sent.append(device)
        return self


def test_a_part_comes_and_goes_back() -> None:
    parts = [Traveller(), Traveller()]
    with on_device(parts, CARD):
        assert [part.sent for part in parts] == [[CARD]] * 2
    assert [part.sent for part in parts] == [[CARD, HOME]] * 2


def test_it_goes_back_where_something_fails() -> None:
    part = Traveller()
    with pytest.raises(RuntimeError, match="out of memory"), on_device([part], CARD):
        raise RuntimeError("out of memory")
    assert part.sent[-1] == HOME


def test_a_wider_type_is_left_again_without_a_changed_bit() -> None:
    part = Traveller().bfloat16()
    before = part.weight.detach().clone()
    with on_device([part], CARD, dtype=torch.float32):
        assert part.weight.dtype == torch.float32
    assert part.weight.dtype == torch.bfloat16
    assert torch.equal(part.weight, before)
    assert part.sent == [CARD, HOME]


def test_what_is_held_narrow_comes_wide_and_goes_back() -> None:
    part = Traveller().bfloat16().float()
    hold_narrow(part, torch.bfloat16)
    with on_device([part], CARD):
        assert part.weight.dtype == torch.float32
    assert part.weight.dtype == torch.bfloat16
    assert part.sent == [CARD, HOME]
    # One that would be rounded stays, and so does one that holds what was computed.
    other = Traveller()
    hold_narrow(other, torch.bfloat16)
    assert (other.weight.dtype, is_narrow(other)) == (torch.float32, False)
    computed = Traveller().bfloat16().float()
    computed.register_buffer("angles", torch.full((2,), 1 / 3))
    hold_narrow(computed, torch.bfloat16)
    assert (computed.weight.dtype, is_narrow(computed)) == (torch.float32, False)


def test_a_module_without_weights_stays() -> None:
    with on_device([nn.Identity()], CARD):
        pass


def test_text_encoders_are_away_while_captions_are_drawn(tmp_path: Path, accelerator: Accelerator) -> None:
    encoder = Traveller()
    seen: list[int] = []

    def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
        seen.append(len(encoder.sent))
        return torch.ones(len(texts), 2, 3), torch.zeros(len(texts), 0)

    captions = Captions(["a", "b"], encode, [encoder], accelerator, folder=tmp_path)
    assert encoder.sent == []
    captions.ready()
    assert encoder.sent == [accelerator.device, HOME]
    # Every caption was encoded between the two moves.
    assert set(seen) == {1}
    captions.ready()
    captions.draw(torch.tensor([0, 1]))
    assert len(encoder.sent) == 2


def test_a_text_encoder_that_overflows_is_refused(tmp_path: Path, accelerator: Accelerator) -> None:
    def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
        return torch.full((len(texts), 1, 1), torch.inf), torch.zeros(len(texts), 0)

    narrow = nn.Linear(1, 1).half()
    captions = Captions(["a"], encode, [narrow], accelerator, folder=tmp_path)
    with pytest.raises(DataError, match="overflows in torch.float16: use --text_encoder_dtype float32"):
        captions.ready()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cached_embeddings_are_those_of_the_encoder_rounded(
    tmp_path: Path, accelerator: Accelerator, dtype: Any
) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(3, 4, generator=generator)

    def encode(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows = table[[int(text) for text in texts]]
        return rows[:, None], rows[:, :1]

    texts = ["0", "1", "2"]
    captions = Captions(texts, encode, [nn.Linear(1, 1)], accelerator, folder=tmp_path, dtype=dtype)
    captions.ready()
    tokens, pooled = captions.draw(torch.tensor([2, 0]))
    expected = table.to(getattr(torch, dtype)).float()
    assert tokens.dtype == pooled.dtype == torch.float32
    assert torch.equal(tokens[:, 0], expected[[2, 0]])
    assert torch.equal(pooled, expected[[2, 0], :1])
