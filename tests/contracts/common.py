"""What the contracts share: which families and orders they run over, and a short training."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler

from ..settings import FAMILIES, Family


ORDERS = ("interleaved", "suffix", "prefix")
DIRECTIONS = ("unfreeze", "freeze", "window")
# One family of every kind of block structure: a UNet, blocks of one kind, two lists of blocks, blocks beside refiners.
CORE = ("sd", "dit", "flux", "lumina2")


def in_turn(family: Family, *values: object, name: str = "", default: bool | None = None) -> Any:
    """A test of one family: `default` says whether it is in every run of the suite or in the slow ones only.

    By default those of `CORE` are in every run.
    """
    quick = family.id in CORE if default is None else default
    return pytest.param(family, *values, id=name or family.id, marks=() if quick else (pytest.mark.slow,))


def order_of(family: Family, direction: str) -> str:
    """The order in which a family of `CORE` takes a direction in every run of the suite.

    They take turns: every family meets every direction and every order, and every order every direction.
    """
    return ORDERS[(CORE.index(family.id) + DIRECTIONS.index(direction)) % len(ORDERS)]


def over_orders(direction: str, *, others: bool, embedded: bool = False) -> pytest.MarkDecorator:
    """Families and orders for a test of one direction: `order_of` in every run of the suite, all of them in slow runs.

    Args:
        direction: What the test trains.
        others: Whether families outside of `CORE` are in every run too; they take the order that cuts most off.
        embedded: Only families in which a stage embedding has a place.
    """
    cases = []
    for family in FAMILIES:
        if embedded and not family.points:
            continue
        for order in ORDERS if family.id in CORE else ("suffix",):
            default = order == order_of(family, direction) if family.id in CORE else others
            cases.append(in_turn(family, order, name=f"{family.id}-{order}", default=default))
    return pytest.mark.parametrize(("family", "order"), cases)


families = pytest.mark.parametrize("family", [pytest.param(family, id=family.id) for family in FAMILIES])
# Those in which a stage embedding has a place.
embedded = pytest.mark.parametrize("family", [pytest.param(f, id=f.id) for f in FAMILIES if f.points])
core = pytest.mark.parametrize("family", [pytest.param(f, id=f.id) for f in FAMILIES if f.id in CORE])
# What concerns memory and optimizers knows nothing of a family but its blocks.
slowly = pytest.mark.parametrize("family", [in_turn(family) for family in FAMILIES])
ordered = over_orders("unfreeze", others=True)
embedded_ordered = over_orders("unfreeze", others=True, embedded=True)


def start(family: Family, steps: int = 6, **settings: Any) -> tuple[nn.Module, GrowthScheduler, torch.optim.Optimizer]:
    model = family.build().train()
    growth = GrowthScheduler(
        model, GrowthConfig(**{"num_stages": 3, "order": "interleaved", "direction": "unfreeze", **settings})
    )
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-2, weight_decay=0.1)
    growth.prepare(model, num_training_steps=steps, optimizer=optimizer)
    return model, growth, optimizer


def averaged(family: Family) -> dict[str, Any]:
    """Settings of a stage embedding that has the most to lose in a resume, where the family has a place for one."""
    return {"ema_decay": 0.9, "stage_embedding_init": "carry"} if family.points else {}


def assert_folds_to_a_plain_model(family: Family, **settings: Any) -> None:
    """After a whole run everything trains that did before, and no hook is left."""
    model, growth, optimizer = start(family, **settings)
    for step in range(6):
        train(family, model, optimizer, step)
        growth.step()
    growth.fold(model)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == growable(family)
    assert not hooks(model)


def growable(family: Family) -> set[str]:
    """Names of the parameters that train in the end: all but those the class itself keeps frozen."""
    return {name for name, parameter in family.build().named_parameters() if parameter.requires_grad}


def train(family: Family, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    family.loss(model, seed).backward()
    optimizer.step()
    optimizer.zero_grad()


def used(family: Family, model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's parameters by name, without those that its forward pass never uses."""
    return {n: parameter for n, parameter in model.named_parameters() if not any(fnmatch(n, p) for p in family.unused)}


def step_moves_what_trains(
    family: Family, model: nn.Module, named: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, seed: int
) -> set[str]:
    """One step without `zero_grad`: what trains has a gradient and moves, what is frozen does neither; its names."""
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    frozen = {name for name, parameter in named.items() if not parameter.requires_grad}
    family.loss(model, seed).backward()
    assert not [name for name in frozen if named[name].grad is not None]
    # Also what DDP needs: a parameter that trains and gets no gradient would hang the ranks.
    assert not [name for name in set(named) - frozen if named[name].grad is None]
    optimizer.step()
    moved = {name for name, parameter in named.items() if not torch.equal(parameter, before[name])}
    assert moved == set(named) - frozen
    return frozen


@torch.no_grad()
def outputs(family: Family, model: nn.Module) -> Tensor:
    """The output for the batch of seed 7, in evaluation mode."""
    training = model.training
    result = family.output(model.eval(), family.inputs(7, 2))
    model.train(training)
    return result


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def hooks(model: nn.Module) -> list[str]:
    """Names of the modules that carry any hook."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [name for name, module in model.named_modules() if any(getattr(module, kind) for kind in kinds)]
