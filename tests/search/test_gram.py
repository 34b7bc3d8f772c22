"""Gram matrices of every layer type against per-sample gradients, written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autoprog_diffusion.search.gram import pair_gram
from autoprog_diffusion.search.ntk import condition_number, parameter_grams
from autoprog_diffusion.search.recorded_calls import RecordedCall

from .reference import literal_condition_number, literal_gram


class Reused(nn.Module):
    """One linear layer and one convolution that each run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(torch.tanh(self.conv(x)))
        return self.linear(torch.tanh(self.linear(x.mean(dim=(2, 3)))))


class ReusedTokens(nn.Module):
    """One embedding that runs twice, as DiT's label embedder in block 0 does."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 2)

    def forward(self, index: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(index)) * self.table((index + 1) % 5))


class Tied(nn.Module):
    """Two linear layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Bare(nn.Module):
    """A parameter of its own, a layer that sees no batch, and a layer type without a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_table = nn.Parameter(torch.randn(3))
        self.shared, self.bilinear = nn.Linear(3, 3), nn.Bilinear(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bilinear(x, torch.tanh(x)) * self.weight_table + self.shared(self.weight_table[None])


class Tokens(nn.Module):
    """An embedding with repeated indices."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 2)

    def forward(self, index: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(index)))


def image(channels: int = 4) -> Tensor:
    return torch.randn(5, channels, 6, 7)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(6, 3), lambda: torch.randn(5, 6)),
    "linear-tokens": (lambda: nn.Linear(6, 3), lambda: torch.randn(5, 9, 6)),
    "linear-wide": (lambda: nn.Linear(40, 50), lambda: torch.randn(5, 2, 40)),
    "linear-4d": (lambda: nn.Linear(6, 3, bias=False), lambda: torch.randn(5, 2, 4, 6)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1), image),
    "conv-stride-dilation": (lambda: nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=(2, 1)), image),
    "conv-groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), image),
    "conv-circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), image),
    "conv-same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), image),
    "group-norm": (lambda: nn.GroupNorm(2, 4), image),
    "layer-norm": (lambda: nn.LayerNorm(6), lambda: torch.randn(5, 3, 6)),
    "layer-norm-2d": (lambda: nn.LayerNorm((3, 6)), lambda: torch.randn(5, 3, 6)),
    "rms-norm": (lambda: nn.RMSNorm(6), lambda: torch.randn(5, 3, 6)),
    "embedding": (Tokens, lambda: torch.randint(5, (6, 7))),
    "embedding-reused": (ReusedTokens, lambda: torch.randint(5, (6,))),
    "embedding-reused-tokens": (ReusedTokens, lambda: torch.randint(5, (6, 7))),
    "reused": (Reused, lambda: image(3)),
    "tied": (Tied, lambda: torch.randn(5, 3)),
    "bare": (Bare, lambda: torch.randn(5, 3)),
}


def test_every_layer_type_equals_per_sample_gradients() -> None:
    for case in CASES:
        build, draw = CASES[case]
        # A smooth nonlinearity after the layer, so that the output gradient differs between samples and positions.
        model = nn.Sequential(build(), nn.Tanh()).double()
        inputs = draw()
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        call = RecordedCall((inputs,), {}, torch.zeros(len(inputs)))
        found = parameter_grams(model, call)
        assert set(found) == {name for name, _ in model.named_parameters()}
        for name in found:
            torch.testing.assert_close(found[name], literal_gram(model, call, [name]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("tokens", "width"), [(2, 40), (60, 3)], ids=["pairs", "formed"])
def test_both_ways_of_a_pair_gram_agree_with_the_sums(tokens: int, width: int) -> None:
    a, b = torch.randn(4, tokens, width).double(), torch.randn(4, tokens, width + 1).double()
    formed = torch.stack([sum(torch.outer(b[i, t], a[i, t]).flatten() for t in range(tokens)) for i in range(4)])
    torch.testing.assert_close(pair_gram(a, b), formed @ formed.T, rtol=1e-12, atol=1e-12)


def test_condition_number() -> None:
    rows = torch.randn(6, 40).double()
    gram = rows @ rows.T
    assert condition_number(gram) == pytest.approx(literal_condition_number(gram), rel=1e-12)


A_DEGENERATE_KERNEL = [
    (torch.ones(4, 4), math.inf),
    (torch.zeros(3, 3), math.inf),
    (torch.full((3, 3), math.nan), math.nan),
    (torch.ones(1, 1), math.nan),
]


def test_a_degenerate_kernel_is_never_a_good_number() -> None:
    for gram, expected in A_DEGENERATE_KERNEL:
        assert condition_number(gram) == pytest.approx(expected, nan_ok=True)


def test_a_negative_rounding_error_does_not_win() -> None:
    """Two equal samples in float32: the literal smallest eigenvalue is often negative, which the paper's code ranks
    best."""
    rows = torch.randn(5, 30)
    gram = (rows[[0, 0, 1, 2, 3]] @ rows[[0, 0, 1, 2, 3]].T).double()
    assert condition_number(gram) == math.inf
