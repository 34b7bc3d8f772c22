"""The device without memory follows a CUDA device's rules: types under autocast, cached copies, fused attention."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from autoprog_diffusion.planner.device import without_memory
from autoprog_diffusion.planner.tracker import MemoryTracker


@pytest.fixture
def device() -> Iterator[torch.device]:
    with without_memory() as device:
        yield device


def test_operations_run_in_the_types_that_autocast_gives_them(device: torch.device) -> None:
    x = torch.randn(2, 3, 8, device=device)
    half = x.bfloat16()
    with torch.autocast(device.type, torch.bfloat16):
        assert (x @ x.mT).dtype == F.linear(x, torch.randn(4, 8, device=device)).dtype == torch.bfloat16
        assert F.layer_norm(half, (8,)).dtype == half.exp().dtype == torch.float32
        assert half.softmax(-1).dtype == half.sum(-1).dtype == half.sum().dtype == torch.float32
        assert half.sum(-1, dtype=torch.bfloat16).dtype == torch.bfloat16
        assert torch.addcmul(half, x, half).dtype == torch.float32
        assert (half + half).dtype == F.silu(half).dtype == torch.bfloat16
        assert (x.double() @ x.double().mT).dtype == torch.float64
    assert (x @ x.mT).dtype == half.softmax(-1).to(torch.float32).dtype == torch.float32


def test_a_copy_of_a_weight_that_trains_is_made_once_and_ends_with_autocast(device: torch.device) -> None:
    x = torch.randn(2, 8, device=device)
    for trains, copies in ((True, 1), (False, 2)):
        weight = torch.nn.Parameter(torch.randn(4, 8, device=device), requires_grad=trains)
        with MemoryTracker() as tracker:
            tracker.label("weights", [weight])
            with torch.autocast(device.type, torch.bfloat16), torch.no_grad():
                results = [F.linear(x, weight), F.linear(x, weight)]
                assert tracker.now(device.type)["copies"] == trains * 2 * weight.numel()
            assert tracker.now(device.type)["copies"] == 0
            made = [held for held in tracker._dead if held.kind == "copies"]
            assert len(made) == copies
        del results


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_fused(device: torch.device, masked: bool) -> None:
    query = torch.randn(1, 2, 16, 8, device=device, requires_grad=True)
    key = torch.randn(1, 2, 20, 8, device=device)
    mask = torch.ones(16, 20, device=device, dtype=torch.bool) if masked else None
    result = F.scaled_dot_product_attention(query, key, key, attn_mask=mask)
    assert "Efficient" in type(result.grad_fn).__name__
    result.sum().backward()
    assert query.grad is not None
    assert query.grad.shape == query.shape
