"""What a row says about its model is true. Nothing here needs the growth library."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from . import BY_ID, DENOISERS, FAMILIES, Family


# Mochi asks for autocast to float32, which torch does not have on the CPU.
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")
families = pytest.mark.parametrize("family", [pytest.param(family, id=family.id) for family in FAMILIES])
# Diffusers lists this block's parts instead.
UNDECLARED = {"UNetMidBlock2DCrossAttn"}
TIME_INPUTS = ("timestep", "t")
EMBEDDER_CLASSES = ("TimestepEmbedding", "TimestepEmbedder")
EMBEDDERS = ("timestep_proj",)  # Stable Audio's is a plain Sequential
REFINER = "context_embedder."  # Hunyuan-Video's text refiner embeds the timestep for itself


def is_unused(family: Family, name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in family.unused)


@torch.no_grad()
def evaluate(family: Family, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    return family.output(model.eval(), inputs)


def both_ends(family: Family) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same inputs at the first and at a late timestep."""
    inputs = family.inputs(3, 2)
    name = next(name for name in TIME_INPUTS if name in inputs)
    return {**inputs, name: torch.zeros_like(inputs[name])}, inputs


def test_the_table_is_wide() -> None:
    assert len(BY_ID) == len(FAMILIES) >= 26
    assert len({type(family.build()) for family in FAMILIES}) >= 24


@families
def test_a_row_says_what_is_true_of_its_model(family: Family) -> None:
    a_model_is_small_and_the_same_at_every_call_and_in_every_pass(family)
    every_parameter_gets_a_gradient_but_the_unused(family)
    blocks_run_once_in_the_listed_order(family)
    if family in DENOISERS:
        blocks_are_whole_lists_of_what_diffusers_repeats(family)
        the_timestep_acts_through_its_points_and_only_a_token_ends_at_a_frozen_front(family)


def a_model_is_small_and_the_same_at_every_call_and_in_every_pass(family: Family) -> None:
    state = torch.get_rng_state()
    first, second = family.build(), family.build()
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(parameter.numel() for parameter in first.parameters()) < 2_000_000
    theirs = second.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in first.state_dict().items())
    assert all(parameter.any() for parameter in first.parameters())
    for batch in (1, 2, 16):
        output = evaluate(family, first, family.inputs(3, batch))
        assert len(output) == batch
        assert output.isfinite().all()
        assert output.std() > 1e-2
    again = (evaluate(family, second, family.inputs(3, 16)), evaluate(family, second, family.inputs(4, 16)))
    assert [torch.equal(output, other) for other in again] == [True, False]


def every_parameter_gets_a_gradient_but_the_unused(family: Family) -> None:
    model = family.build().train()
    loss = family.loss(model, 0)
    assert loss == family.loss(model, 0)
    loss.backward()
    named = dict(model.named_parameters())
    dead = {name for name, parameter in named.items() if parameter.grad is None or not parameter.grad.any()}
    assert dead == {name for name in named if is_unused(family, name)}
    for pattern in family.unused:
        assert any(fnmatch(name, pattern) for name in named), pattern


def blocks_run_once_in_the_listed_order(family: Family) -> None:
    assert len(set(family.blocks)) == len(family.blocks) >= 4
    model = family.build()
    ran: list[str] = []
    for name in family.blocks:
        model.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: ran.append(name))
    evaluate(family, model, family.inputs(0, 2))
    assert tuple(ran) == family.blocks


def blocks_are_whole_lists_of_what_diffusers_repeats(family: Family) -> None:
    model = family.build()
    for parent in {name.rpartition(".")[0] for name in family.blocks} - {""}:
        children = {f"{parent}.{child}" for child, _ in model.get_submodule(parent).named_children()}
        assert children <= set(family.blocks), parent
    classes = {type(model.get_submodule(name)).__name__ for name in family.blocks}
    declared = {*(model._repeated_blocks or ()), *(model._no_split_modules or ())}
    assert not declared or classes - declared <= UNDECLARED


def the_timestep_acts_through_its_points_and_only_a_token_ends_at_a_frozen_front(family: Family) -> None:
    """Embedders of guidance, sizes and frame numbers are of the same class, but do not follow the timestep."""
    model = family.build()
    heads, change = timestep_heads(family, model)
    assert change > 1e-4
    assert sum(head.bias is not None for head in heads) == family.points
    first = model.get_submodule(family.blocks[0])
    first.register_forward_hook(lambda module, args, output: tree_map(Tensor.detach, output))
    family.loss(model, 0).backward()
    gradients = [head.weight.grad for head in heads]
    assert family.time_token == bool(heads and all(gradient is None for gradient in gradients))


def timestep_heads(family: Family, model: nn.Module) -> tuple[list[nn.Linear], float]:
    """The last layers of the embedders whose output changes with the timestep, and by how much the model's does."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, args, output, n=name: seen.update({n: output}))
        for name, module in model.named_modules()
        if name in EMBEDDERS or type(module).__name__ in EMBEDDER_CLASSES and not name.startswith(REFINER)
    ]
    early, late = both_ends(family)
    first = evaluate(family, model, early)
    before = dict(seen)
    change = float((evaluate(family, model, late) - first).abs().max())
    for handle in handles:
        handle.remove()
    follow = [name for name, output in seen.items() if not torch.equal(output, before[name])]
    heads = [[m for m in model.get_submodule(name).modules() if isinstance(m, nn.Linear)][-1] for name in follow]
    return heads, change
