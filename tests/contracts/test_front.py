"""The frozen front costs nothing, and recomputed activations change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from autoprog_diffusion.growth.flops import flop_counter

from ..settings import FAMILIES, Family
from .common import CORE, ORDERS, families, in_turn, order_of, start


# Their classes have no gradient checkpointing.
WITHOUT = ("unet3d", "hunyuan_dit", "prior")


def checkpointed() -> list[Any]:
    """Families, orders and dropouts of the stage: one order of a family in every run, and dropout where it acts."""
    cases = []
    for family in FAMILIES:
        if family.id in WITHOUT:
            continue
        for order in ORDERS if family.id in CORE else ("suffix",):
            for dropout in (0.0, 0.5) if family.points else (0.0,):
                in_order = family.id not in CORE or order == order_of(family, "unfreeze")
                harder = family.id in CORE or dropout > 0 or not family.points
                name = f"{family.id}-{order}-{dropout}"
                cases.append(in_turn(family, order, dropout, name=name, default=in_order and harder))
    return cases


# torch 2.13's FLOP counter fails on views made without gradient, as Stable Video Diffusion makes them.
@pytest.mark.parametrize("family", [in_turn(family) for family in FAMILIES if family.id != "svd"])
def test_a_suffix_stage_costs_the_least(family: Family) -> None:
    flops: dict[str, int] = {}
    for order in ORDERS:
        model, _, _ = start(family, order=order)
        with flop_counter() as counter:
            family.loss(model, 0).backward()
        flops[order] = counter.get_total_flops()
    assert flops["suffix"] < flops["prefix"]
    if not family.id.startswith(("sd", "unet")) or family.id == "sd3":  # UNets' blocks differ in size
        assert flops["suffix"] < flops["interleaved"]


@families
def test_frozen_front_gets_no_gradient_and_survives_an_exception(family: Family) -> None:
    model, growth, _ = start(family, order="suffix")
    first = growth.plan.stages[0].blocks[0]
    assert first > 0
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
    named = dict(model.named_parameters())
    cut = [growth.layout.inputs, *growth.layout.blocks[:first]]
    assert not [name for unit in cut for name in unit.parameters if named[name].grad is not None]


@pytest.mark.parametrize(("family", "order", "dropout"), checkpointed())
def test_gradient_checkpointing_gives_equal_gradients(family: Family, order: str, dropout: float) -> None:
    grads = []
    for checkpointing in (False, True):
        settings = {"stage_embedding_init": "normal", "stage_dropout": dropout} if family.points else {}
        model, growth, _ = start(family, order=order, **settings)
        assert not checkpointing or family.checkpoint(model)
        family.loss(model, 3).backward()
        named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        if growth.stage_embedding is not None and growth.stage_embedding.table.grad is not None:
            named["table"] = growth.stage_embedding.table.grad
        grads.append(named)
    plain, checkpointed = grads
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: n + m)
