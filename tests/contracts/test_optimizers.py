"""The contracts over optimizers: what is frozen holds no state, and every resume is exact, whatever steps."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.training.low_bit import CLASSES
from autoprog_diffusion.training.optimizers import OPTIMIZERS, ROUNDING, Settings
from autoprog_diffusion.training.trained_dtype import LAYERS, store_in_bfloat16, store_in_float32

from ..settings import BY_ID, FAMILIES, Family
from .common import in_turn, slowly, used


Parts = tuple[nn.Module, GrowthScheduler, torch.optim.Optimizer]
HERE = tuple(name for name in OPTIMIZERS if name != "adamw8bit_bnb")  # bitsandbytes is not installed with the tests
PLANS: dict[str, dict[str, Any]] = {
    "freeze": {"num_stages": 2, "min_trainable": 0.5},
    "unfreeze": {"num_stages": 2, "min_trainable": 0.5},
    # A block that comes back takes up its state where it left it.
    "window": {"num_stages": 4, "sweeps": 2, "window_state": "park"},
}
# One family takes every direction, those of other shapes the default one.
FULL = [("dit", direction) for direction in PLANS] + [("sd", "freeze"), ("flux", "freeze")]
STEPS = 4


def meet(name: str, direction: str, *, rounded: bool = False) -> bool:
    """Whether they meet in every run of the suite: each optimizer in one direction, and in another one rounded."""
    return (HERE.index(name) + list(PLANS).index(direction)) % len(PLANS) == int(rounded)


def start(family: Family, name: str, direction: str, *, rounded: bool = False) -> Parts:
    model = family.build().train()
    if rounded:
        store_in_bfloat16(model)
    config = GrowthConfig(direction=direction, **PLANS[direction])
    growth = GrowthScheduler(model, config)
    settings = Settings(lr=1e-3, seed=5 if rounded else None)
    optimizer = OPTIMIZERS[name](growth.parameter_groups(), settings)
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    return model, growth, optimizer


def train(family: Family, parts: Parts, step: int) -> None:
    model, growth, optimizer = parts
    with torch.autocast("cpu", torch.bfloat16, enabled=optimizer.__dict__.get("_seed") is not None):
        loss = family.loss(model, step)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    growth.step()


def snapshot(parts: Parts) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in parts], buffer)
    return buffer


def loaded(buffer: io.BytesIO) -> Any:
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def plain(value: Any) -> Any:
    """A state in which every tensor is compared bit by bit: the parts of torchao's, as bytes."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if hasattr(value, "tensor_attrs"):
        return [type(value).__name__, str(value.dtype), *(plain(getattr(value, name)) for name in value.tensor_attrs)]
    if isinstance(value, Tensor):
        return [str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes()]
    return value


def check_resume(family: Family, begin: Callable[[], Parts], at: int) -> None:
    parts = begin()
    for step in range(at):
        train(family, parts, step)
    saved = snapshot(parts)
    for step in range(at, STEPS):
        train(family, parts, step)
    again = begin()
    model, growth, optimizer = again
    states = loaded(saved)
    model.load_state_dict(states[0])
    optimizer.load_state_dict(states[2])
    growth.load_state_dict(copy.deepcopy(states[1]))
    for step in range(at, STEPS):
        train(family, again, step)
    assert plain(loaded(snapshot(again))) == plain(loaded(snapshot(parts)))


@pytest.mark.parametrize(
    ("family", "direction", "name"),
    [
        # Of the other families one optimizer is resumed in every run of the suite, all of them in the slow ones.
        in_turn(
            BY_ID[id],
            way,
            name,
            name=f"{id}-{way}-{name}",
            default=meet(name, way) if id == "dit" else name == "adamw8bit",
        )
        for id, way in FULL
        for name in HERE
    ],
)
def test_a_resumed_run_is_the_same_run(family: Family, direction: str, name: str) -> None:
    """Where the next stage has just begun; where states are parked, before and after that as well."""
    for at in (1, 2, 3) if direction == "window" else (2,):
        check_resume(family, lambda: start(family, name, direction), at)


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        pytest.param(name, way, marks=() if meet(name, way, rounded=True) else (pytest.mark.slow,))
        for name in ROUNDING
        for way in PLANS
    ],
)
def test_a_resumed_run_of_bfloat16_weights_is_the_same_run(name: str, direction: str) -> None:
    family = BY_ID["dit"]
    check_resume(family, lambda: start(family, name, direction, rounded=True), 2)


@slowly
def test_frozen_blocks_hold_no_state_of_any_optimizer(family: Family) -> None:
    """Both directions; the optimizers take turns over the families, since each is asked in many."""
    turn = FAMILIES.index(family)
    for direction in ("freeze", "unfreeze"):
        name = HERE[turn % len(HERE)]
        model, growth, optimizer = start(family, name, direction)
        for step in range(3):
            train(family, (model, growth, optimizer), step)
            trained = {parameter for parameter in growth.parameters() if parameter.requires_grad}
            assert optimizer.state.keys() <= trained
            assert growth.stage == (step > 0)
        assert optimizer.state.keys() & set(used(family, model).values())
        turn += 1


@slowly
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # RMSNorm, on the CPU
def test_under_autocast_weights_in_bfloat16_compute_what_they_do_in_float32(family: Family) -> None:
    stored = family.build().train()
    store_in_bfloat16(stored)
    widened = family.build().train()
    store_in_bfloat16(widened)
    store_in_float32(widened.parameters())
    losses = []
    for model in (stored, widened):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(family.loss(model, 3))
    assert torch.equal(*losses)
    losses[0].backward()
    types = {parameter.dtype for parameter in stored.parameters()}
    assert types == {torch.bfloat16, torch.float32}
    for module in stored.modules():
        if isinstance(module, LAYERS):
            assert module.weight.dtype == torch.bfloat16


def test_all_optimizers_are_asked() -> None:
    assert set(HERE) == {"adamw", *CLASSES, "adafactor"}
