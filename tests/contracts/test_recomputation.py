"""Blocks that are computed again change no bit of a run, and are exactly those that were chosen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprog_diffusion import GrowthScheduler, UnitError
from autoprog_diffusion.growth.frozen_front import in_backward

from ..settings import BY_ID, FAMILIES, Family
from .common import CORE, ORDERS, in_turn, start
from .test_resume import assert_resumes


# Their classes have no gradient checkpointing, or their library takes no function for it.
REFUSED = ("unet3d", "hunyuan_dit", "prior")
ABLE = [f for f in FAMILIES if f.id not in REFUSED and not f.id.startswith("timm")]
able = pytest.mark.parametrize("family", [in_turn(family) for family in ABLE])
# A UNet, whose blocks are of many kinds, and a class that does not let all of its modules be computed again.
two = pytest.mark.parametrize("family", [in_turn(f, default=f.id in ("sd", "lumina2")) for f in ABLE if f.id in CORE])
QUICK = [BY_ID[name] for name in ("unet2d", "dit", "flux")]
SUFFIX = {"num_stages": 2, "min_trainable": 0.5, "order": "suffix", "direction": "freeze"}


def alone(name: str) -> pytest.MarkDecorator:
    """Three families, of which one is in every run of the suite."""
    return pytest.mark.parametrize("family", [in_turn(family, default=family.id == name) for family in QUICK])


@contextmanager
def seen_again(model: nn.Module, growth: GrowthScheduler) -> Iterator[set[str]]:
    """Names of the blocks of which a module runs inside the backward pass."""
    names: set[str] = set()

    def note(name: str, *ignored: Any) -> None:
        if in_backward():
            names.add(name)

    handles = []
    for unit in growth.layout.blocks:
        inner = [module for name in unit.modules for module in model.get_submodule(name).modules()]
        handles += [module.register_forward_pre_hook(partial(note, unit.name)) for module in inner]
    yield names
    for handle in handles:
        handle.remove()


def run(
    family: Family, checkpointing: str | None, steps: int = 4, precision: Any = None, **settings: Any
) -> tuple[dict[str, Tensor], GrowthScheduler, list[set[str]]]:
    """Weights after a short training, and which blocks were computed again in every step."""
    settings = {**SUFFIX, "checkpointing": checkpointing, **settings}
    if family.points:
        settings = {"stage_embedding_init": "normal", **settings}
    model, growth, optimizer = start(family, steps, **settings)
    again = []
    for step in range(steps):
        with seen_again(model, growth) as names:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
                loss = family.loss(model, step)
            loss.backward()
        again.append(names)
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    return {name: parameter.detach() for name, parameter in growth._applier.named().items()}, growth, again


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def less_than_all(growth: GrowthScheduler) -> float:
    """A budget that is a byte short of what the first stage takes without recomputation."""
    memory = growth.history[0].memory
    assert memory is not None
    assert memory["recomputed"] == []
    parts = ("weights", "gradients", "optimizer", "activations")
    return (sum(memory[part] for part in parts) - 1) / 1e9


@able
def test_no_bit_changes_and_the_chosen_blocks_run_again(family: Family) -> None:
    plain, _, none = run(family, "none")
    assert none == [set()] * 4
    _, growth, _ = run(family, "auto", steps=2, num_stages=1, memory_gb=1.0)
    weights, growth, again = run(family, "auto", memory_gb=less_than_all(growth))
    assert_equal(weights, plain)
    # The first step of a stage is measured while everything is computed again.
    assert set() < again[1] < again[0]
    assert again[1::2] == [set(record.recomputed) for record in growth.history]
    # The frozen front is not computed again, and what has frozen made room.
    names = [unit.name for unit in growth.layout.blocks]
    assert again[2] == again[0].intersection(names[growth.plan.stages[1].blocks[0] :])
    assert len(again[3]) < len(again[1])


@two
def test_all_and_a_large_budget(family: Family) -> None:
    plain, _, _ = run(family, "none")
    weights, growth, again = run(family, "all")
    assert_equal(weights, plain)
    assert again == [set(record.recomputed) for record in growth.history for _ in range(2)]
    if family.id != "lumina2":  # its class does not let its refiners be computed again
        assert again[0] == {unit.name for unit in growth.layout.blocks}
    weights, growth, auto = run(family, "auto", memory_gb=1.0)
    assert_equal(weights, plain)
    assert auto == [again[0], set(), again[2], set()]


# torch says once that its fused norm takes no mixed types.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.parametrize(
    ("family", "order"),
    [
        in_turn(family, order, name=f"{family.id}-{order}", default=turn == ORDERS.index(order))
        for turn, family in enumerate(QUICK)
        for order in ORDERS
    ],
)
def test_no_bit_changes_in_any_order_with_dropout_under_autocast(family: Family, order: str) -> None:
    settings = {"order": order, "precision": torch.bfloat16, "stage_dropout": 0.5}
    plain, _, _ = run(family, "none", **settings)
    weights, growth, _ = run(family, "auto", memory_gb=1.0, **settings)
    assert_equal(weights, plain)
    weights, growth, again = run(family, "auto", memory_gb=less_than_all(growth), **settings)
    assert_equal(weights, plain)
    assert len(again[1]) > 0


@alone("flux")
def test_no_bit_changes_where_blocks_open(family: Family) -> None:
    plain, _, _ = run(family, "none", direction="unfreeze")
    weights, growth, again = run(family, "auto", memory_gb=1.0, direction="unfreeze")
    assert_equal(weights, plain)
    assert again[1] == again[3] == set() < again[0] < again[2]


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@alone("unet2d")
def test_no_bit_changes_over_frozen_blocks_that_are_held_small(family: Family) -> None:
    settings = {"frozen_dtype": "bfloat16", "precision": torch.bfloat16}
    _, exact, _ = run(family, "auto", memory_gb=1.0, precision=torch.bfloat16)
    _, growth, again = run(family, "auto", memory_gb=1.0, **settings)
    assert len(again[2]) > 0 == len(again[3])
    # Less is held in the second stage, and in the first as much.
    first, second = (record.memory for record in growth.history)
    assert first == exact.history[0].memory
    assert second["weights"] < exact.history[1].memory["weights"] == first["weights"]
    models = [each._model for each in (exact, growth)]
    for each, model in zip((exact, growth), models):
        each.fold(model)
    assert_equal(*({name: value.detach() for name, value in model.named_parameters()} for model in models))


@alone("dit")
@pytest.mark.parametrize("checkpointing", [pytest.param("all", marks=pytest.mark.slow), "auto"])
def test_a_resumed_run_is_the_whole_run(family: Family, checkpointing: str) -> None:
    budget = {"memory_gb": 1.0} if checkpointing == "auto" else {}
    assert_resumes(family, (1, 2, 3), checkpointing=checkpointing, direction="freeze", **budget)


@pytest.mark.parametrize("family", [pytest.param(f, id=f.id) for f in FAMILIES if f not in ABLE])
def test_a_class_without_it_is_refused_by_name(family: Family) -> None:
    name = type(family.build()).__name__
    with pytest.raises(UnitError, match=name):
        start(family, checkpointing="all")
