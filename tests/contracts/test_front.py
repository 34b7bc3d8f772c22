"""The frozen front costs nothing, and recomputed activations change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autoprog_diffusion.growth.flops import flop_counter

from ..settings import FAMILIES, Family
from .common import (
    ORDERS,
    families,
    ordered,
    start,
)


# torch 2.13's FLOP counter fails on views made without gradient, as Stable Video Diffusion makes them.
@pytest.mark.parametrize("family", [pytest.param(f, id=f.id) for f in FAMILIES if f.id != "svd"])
def test_a_suffix_stage_cuts_the_front_off(family: Family) -> None:
    flops: dict[str, int] = {}
    for order in ORDERS:
        model, growth, _ = start(family, order=order)
        with flop_counter() as counter:
            family.loss(model, 0).backward()
        flops[order] = counter.get_total_flops()
        if order == "suffix":
            first = growth.plan.stages[0].blocks[0]
            cut = [growth.layout.inputs, *growth.layout.blocks[:first]]
            assert first > 0
            named = dict(model.named_parameters())
            assert not [name for unit in cut for name in unit.parameters if named[name].grad is not None]
    assert flops["suffix"] < flops["prefix"]
    if not family.id.startswith(("sd", "unet")) or family.id == "sd3":  # UNets' blocks differ in size
        assert flops["suffix"] < flops["interleaved"]


@families
def test_frozen_front_runs_without_gradient_and_survives_an_exception(family: Family) -> None:
    model, growth, _ = start(family, order="suffix")
    first = growth.plan.stages[0].blocks[0]
    inside = model.get_submodule(growth.layout.blocks[first - 1].modules[0])
    live = model.get_submodule(growth.layout.blocks[first].modules[0])
    seen: dict[str, bool] = {}
    inside.register_forward_pre_hook(lambda *_: seen.update(front=torch.is_grad_enabled()))
    live.register_forward_pre_hook(lambda *_: seen.update(live=torch.is_grad_enabled()))
    family.loss(model, 0)
    assert seen == {"front": False, "live": True}

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = inside.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        family.loss(model, 0)
    assert torch.is_grad_enabled()
    handle.remove()
    family.loss(model, 0).backward()


@pytest.mark.parametrize("dropout", [0.0, 0.5], ids=["", "stage_dropout"])
@ordered
def test_gradient_checkpointing_gives_equal_gradients(family: Family, order: str, dropout: float) -> None:
    grads = []
    for checkpointing in (False, True):
        settings = {"stage_embedding_init": "normal", "stage_dropout": dropout} if family.points else {}
        model, growth, _ = start(family, order=order, **settings)
        if checkpointing and not family.checkpoint(model):
            pytest.skip(f"{type(model).__name__} has no gradient checkpointing")
        family.loss(model, 3).backward()
        named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        if growth.stage_embedding is not None and growth.stage_embedding.table.grad is not None:
            named["table"] = growth.stage_embedding.table.grad
        grads.append(named)
    plain, checkpointed = grads
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: n + m)
