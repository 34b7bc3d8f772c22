"""The contracts of small storage: bfloat16 changes no bit, every format gives back what was trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler

from ..settings import BY_ID, FAMILIES, Family
from .common import CORE, core, growable, hooks, in_turn
from .test_resume import assert_same, snapshot


# torch and a class of Diffusers, about types in bfloat16 autocast on the CPU.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight"),
    pytest.mark.filterwarnings("ignore:In CPU autocast, but the target dtype is not supported"),
]

SETTINGS: dict[str, dict[str, Any]] = {
    "freeze": {"direction": "freeze"},
    "unfreeze": {"direction": "unfreeze", "order": "interleaved"},
    "window": {"direction": "window", "window_state": "park", "num_stages": 4, "sweeps": 2},
}
# Its gradients in bfloat16 on the CPU differ from one run to the next, without any storage.
UNREPEATABLE = ("svd",)
# In every run of the suite one family takes every direction, those of other shapes one each.
TURNS = {"sd": "window", "flux": "unfreeze", "lumina2": "freeze"}
in_every_direction = pytest.mark.parametrize(
    ("family", "direction"),
    [
        in_turn(family, way, name=f"{family.id}-{way}", default=family.id == "dit" or TURNS.get(family.id) == way)
        for family in FAMILIES
        if family.id not in UNREPEATABLE
        for way in (SETTINGS if family.id in CORE else ("freeze",))
    ],
)


def begin(family: Family, dtype: str | None, steps: int, **settings: Any) -> tuple[nn.Module, GrowthScheduler, Any]:
    model = family.build().train()
    growth = GrowthScheduler(model, GrowthConfig(**{"num_stages": 3, "frozen_dtype": dtype, **settings}))
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-3, weight_decay=0.1)
    growth.prepare(model, num_training_steps=steps, optimizer=optimizer)
    return model, growth, optimizer


def step(family: Family, model: nn.Module, growth: GrowthScheduler, optimizer: Any, seed: int) -> dict[str, Tensor]:
    """One step under autocast; its loss and gradients."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = family.loss(model, seed)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    found["loss"] = loss.detach()
    optimizer.step()
    optimizer.zero_grad()
    growth.step()
    return found


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        # A tiny model may overflow in half precision; it then does so with and without storage.
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0, equal_nan=True, msg=name)


def stored_layers(growth: GrowthScheduler) -> list[Any]:
    return [layer for layer in growth._storage._layers if layer.stored]


@in_every_direction
def test_bfloat16_changes_no_bit(family: Family, direction: str) -> None:
    settings = SETTINGS[direction]
    steps = 4 if family.id in CORE else 2
    plain = begin(family, None, steps, **settings)
    small = begin(family, "bfloat16", steps, **settings)
    held = 0
    for seed in range(steps):
        held += len(stored_layers(small[1]))
        assert_equal(step(family, *small, seed), step(family, *plain, seed))
        assert_equal(small[0].state_dict(), plain[0].state_dict())
    assert held > 0
    for model, growth, _ in (small, plain):
        growth.fold(model)
    assert_equal(small[0].state_dict(), plain[0].state_dict())
    types = {parameter.dtype for parameter in small[0].parameters()}
    assert types == {parameter.dtype for parameter in plain[0].parameters()}
    assert {name for name, parameter in small[0].named_parameters() if parameter.requires_grad} == growable(family)
    assert not hooks(small[0])
    assert not [name for name, module in small[0].named_modules() if "forward" in vars(module)]


@core
def test_a_quantised_block_computes_and_is_given_back_exactly(family: Family) -> None:
    model, growth, optimizer = begin(family, "int8", 3, direction="window")
    for seed in range(3):
        layers = stored_layers(growth)
        assert layers
        before = {name: value.clone() for name, value in model.state_dict().items()}
        kept = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        found = step(family, model, growth, optimizer, seed)
        assert torch.isfinite(found["loss"])
        after = model.state_dict()
        assert not [name for name in kept if not torch.equal(before[name], after[name])]
    growth.fold(model)
    assert not [name for name, value in model.named_parameters() if value.isnan().any()]


@pytest.mark.parametrize(
    ("direction", "dtype"),
    [
        pytest.param("freeze", "bfloat16", marks=pytest.mark.slow),
        pytest.param("unfreeze", "bfloat16", marks=pytest.mark.slow),
        ("window", "bfloat16"),
        pytest.param("window", "float8", marks=pytest.mark.slow),
        ("window", "int8"),
        ("unfreeze", "nf4"),
    ],
)
def test_resume_is_bit_exact(direction: str, dtype: str) -> None:
    family = BY_ID["dit"]
    settings = SETTINGS[direction]
    whole = begin(family, dtype, 4, **settings)
    snapshots = [snapshot(whole[0], whole[2], whole[1])]
    for seed in range(4):
        step(family, *whole, seed)
        snapshots.append(snapshot(whole[0], whole[2], whole[1]))
    last = torch.load(snapshots[-1], weights_only=True)
    for begins in (1, 2, 3):
        states = torch.load(snapshots[begins], weights_only=True)
        model, growth, optimizer = begin(family, dtype, 4, **settings)
        model.load_state_dict(states["model"])
        optimizer.load_state_dict(states["optimizer"])
        growth.load_state_dict(states["growth"])
        for seed in range(begins, 4):
            step(family, model, growth, optimizer, seed)
        ours = torch.load(snapshot(model, optimizer, growth), weights_only=True)
        assert_same(ours, last, f"resumed at {begins}")
