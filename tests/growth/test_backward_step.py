"""An optimizer that steps inside the backward pass: the same weights, and gradients of one unit at a time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth import OrderError
from autoprog_diffusion.training.optimizers import OPTIMIZERS, ROUNDING, Settings
from autoprog_diffusion.training.trained_dtype import store_in_bfloat16

from ..contracts.common import in_turn
from ..settings import BY_ID, FAMILIES, Family
from .looping import SMALL, Small, scheduler


HERE = [name for name in OPTIMIZERS if name != "adamw8bit_bnb"]
STEPS = 4


def run(
    family: Any,
    name: str = "adamw",
    *,
    inside: bool,
    max_norm: float | None = None,
    checkpointing: bool = False,
    rounded: bool = False,
    **settings: Any,
) -> tuple[list[Tensor], list[float]]:
    """Weights and norms of a whole run, the table of the stage embedding included."""
    model = family.build().train()
    if rounded:
        store_in_bfloat16(model)
    if checkpointing:
        assert family.checkpoint(model)
    config = GrowthConfig(**{"num_stages": 2, "min_trainable": 0.5, **settings})
    growth = scheduler(model, config, family=family)
    optimizer = OPTIMIZERS[name](growth.parameter_groups(), Settings(lr=1e-3, seed=0 if rounded else None))
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    backward_step = growth.step_in_backward(optimizer, max_norm=max_norm) if inside else None
    norms = []
    for step in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            loss = family.loss(model, step)
        loss.backward()
        if backward_step is None and max_norm is not None:
            norms.append(clip_by_unit(growth, max_norm))
        optimizer.step()
        if backward_step is not None and max_norm is not None:
            norms.append(float(backward_step.norm))
        optimizer.zero_grad()
        growth.step()
    return [parameter.detach().clone() for parameter in growth.parameters()], norms


def clip_by_unit(growth: GrowthScheduler, max_norm: float) -> float:
    """Clip after the whole backward pass, every unit alone; the norm of everything, computed literally."""
    gradients = [parameter.grad.flatten() for parameter in growth.parameters() if parameter.grad is not None]
    total = float(torch.cat(gradients).norm())
    for group in growth.parameter_groups():
        nn.utils.clip_grad_norm_(group["params"], max_norm)
    return total


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


families = pytest.mark.parametrize("family", [in_turn(family) for family in FAMILIES])


@families
def test_every_family_ends_with_the_weights_of_the_ordinary_step(family: Family) -> None:
    ours, _ = run(family, inside=True)
    theirs, _ = run(family, inside=False)
    assert equal(ours, theirs)


# In every run of the suite each optimizer goes in one direction; they take turns.
TURNS = [
    pytest.param(name, way, marks=() if turn % 3 == number else (pytest.mark.slow,))
    for turn, name in enumerate(HERE)
    for number, way in enumerate(("freeze", "unfreeze", "window"))
]


@pytest.mark.parametrize(("name", "direction"), TURNS)
def test_every_optimizer_and_direction_too(name: str, direction: str) -> None:
    family = BY_ID["dit"]
    settings: dict[str, Any] = {"direction": direction}
    if direction != "freeze":
        settings["rewarm_steps"] = 2
    if direction == "window":
        settings |= {"min_trainable": 0.25, "sweeps": 2, "num_stages": 4, "window_state": "park"}
    ours, _ = run(family, name, inside=True, **settings)
    theirs, _ = run(family, name, inside=False, **settings)
    assert equal(ours, theirs)


@pytest.mark.parametrize("name", ROUNDING)
def test_bfloat16_weights_are_rounded_alike(name: str) -> None:
    ours, _ = run(BY_ID["dit"], name, inside=True, rounded=True)
    theirs, _ = run(BY_ID["dit"], name, inside=False, rounded=True)
    assert equal(ours, theirs)


@pytest.mark.parametrize("id", ["sd", "dit", "flux"])
def test_gradient_checkpointing_changes_nothing(id: str) -> None:
    family = BY_ID[id]
    ours, _ = run(family, inside=True, checkpointing=True)
    theirs, _ = run(family, inside=False, checkpointing=True)
    assert equal(ours, theirs)


@pytest.mark.parametrize("id", ["unet2d", "dit", "qwen_image"])
def test_clipping_is_by_unit(id: str) -> None:
    ours, our_norms = run(BY_ID[id], inside=True, max_norm=0.05)
    theirs, their_norms = run(BY_ID[id], inside=False, max_norm=0.05)
    assert equal(ours, theirs)
    assert our_norms == pytest.approx(their_norms, rel=1e-5)
    assert max(our_norms) > 0.05


@pytest.mark.parametrize("id", ["sd", "dit", "flux", "wan"])
def test_gradients_of_one_unit_are_alive_at_a_time(id: str) -> None:
    family = BY_ID[id]
    model = family.build().train()
    growth = GrowthScheduler(model, GrowthConfig(num_stages=1, min_trainable=1.0))
    optimizer = torch.optim.AdamW(growth.parameters())
    growth.prepare(model, num_training_steps=2, optimizer=optimizer)
    growth.step_in_backward(optimizer)
    groups = growth.parameter_groups()
    owner = {parameter: group["name"] for group in groups for parameter in group["params"]}
    alive: list[set[str]] = []

    def look(parameter: Any) -> None:
        alive.append({owner[each] for each in growth.parameters() if each.grad is not None})

    # After the hook that steps, in the order of registration.
    handles = [parameter.register_post_accumulate_grad_hook(look) for parameter in growth.parameters()]
    family.loss(model, 0).backward()
    inner = {unit.name for unit in growth.layout.blocks}
    # Embedders and outputs stand at both ends of the graph: their gradients come one by one during all of it.
    assert max(len(names & inner) for names in alive) <= 1
    assert max(map(len, alive)) <= 3
    for handle in handles:
        handle.remove()


def test_a_unit_with_a_parameter_that_gets_no_gradient_moves_with_the_loop_s_step() -> None:
    """Every second block is left out, as layer dropping does; the loop's own step finds nothing but the rest."""

    class Dropping(Small):
        def forward(self, value: Tensor) -> Tensor:
            value = self.pos_embed(value)
            for index, block in enumerate(self.transformer_blocks):
                value = block(value) if index % 2 else value + block.to_q.bias
            return self.proj_out(value)

    class Family(type(SMALL)):
        def build(self) -> nn.Module:
            torch.manual_seed(0)
            return Dropping()

    settings = {"stage_embedding": False, "num_stages": 1, "min_trainable": 1.0}
    for max_norm in (None, 0.01):
        ours, our_norms = run(Family(), inside=True, max_norm=max_norm, **settings)
        theirs, their_norms = run(Family(), inside=False, max_norm=max_norm, **settings)
        assert equal(ours, theirs)
        assert our_norms == pytest.approx(their_norms, rel=1e-5)


class Twice(Small):
    """A block that runs twice in every pass, inside and outside of reentrant checkpointing."""

    reentrant = False

    def forward(self, value: Tensor) -> Tensor:
        value = self.pos_embed(value)
        for block in [*self.transformer_blocks, self.transformer_blocks[0]]:
            value = checkpoint(block, value, use_reentrant=True) if self.reentrant else block(value)
        return self.proj_out(value)


class TwiceFamily(type(SMALL)):
    def __init__(self, reentrant: bool) -> None:
        self.reentrant = reentrant

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        model = Twice()
        model.reentrant = self.reentrant
        return model


def test_a_layer_that_is_used_twice_moves_once() -> None:
    settings = {"stage_embedding": False, "num_stages": 1, "min_trainable": 1.0}
    ours, _ = run(TwiceFamily(False), inside=True, **settings)
    theirs, _ = run(TwiceFamily(False), inside=False, **settings)
    assert equal(ours, theirs)
    with pytest.raises(OrderError, match=r"second gradient arrives at transformer_blocks.0 .* use_reentrant=False"):
        run(TwiceFamily(True), inside=True, **settings)


def begin(**settings: Any) -> tuple[nn.Module, GrowthScheduler, torch.optim.Optimizer, Any]:
    model = SMALL.build()
    config = GrowthConfig(**{"num_stages": 2, "min_trainable": 0.5, "stage_embedding": False, **settings})
    growth = scheduler(model, config)
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-2)
    growth.prepare(model, num_training_steps=8, optimizer=optimizer)
    return model, growth, optimizer, growth.step_in_backward(optimizer, max_norm=1.0)


def test_accumulation_is_noticed_and_pauses_are_kept() -> None:
    model, growth, optimizer, backward_step = begin()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with backward_step.paused():
        for seed in (0, 1):
            SMALL.loss(model, seed).backward()
    assert equal(before, list(model.parameters()))
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.zero_grad()
    SMALL.loss(model, 0).backward()
    assert not equal(before, list(model.parameters()))
    # One tensor is left, to notice a loop that clips.
    assert sum(parameter.grad is not None for parameter in model.parameters()) == 1
    with pytest.raises(OrderError, match=r"a second gradient arrives at outputs before optimizer.step\(\)"):
        SMALL.loss(model, 1).backward()


def test_fold_makes_the_optimizer_an_ordinary_one() -> None:
    model, growth, optimizer, _ = begin()
    for step in range(8):
        SMALL.loss(model, step).backward()
        optimizer.step()
        growth.step()
    growth.fold(model)
    SMALL.loss(model, 0).backward()
    SMALL.loss(model, 0).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not optimizer._optimizer_step_pre_hooks


def test_gradients_that_do_not_arrive_are_noticed_as_ever() -> None:
    """Reentrant checkpointing behind a frozen front: the inputs of the block require no gradient."""
    model, growth, optimizer, _ = begin(direction="unfreeze")
    for block in model.transformer_blocks:
        forward = block.forward
        block.forward = lambda value, forward=forward: checkpoint(forward, value, use_reentrant=True)
    model.gradient_checkpointing = True
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad"):
        SMALL.loss(model, 0).backward()
    optimizer.step()
    with pytest.raises(OrderError, match="no gradient arrives at"):
        growth.step()


def test_a_resumed_run_is_the_same_run() -> None:
    model, growth, optimizer, _ = begin()
    parts = (model, optimizer, growth)
    states: list[Any] = []
    for step in range(8):
        if step == 3:
            states = copy.deepcopy([part.state_dict() for part in parts])
        SMALL.loss(model, step).backward()
        optimizer.step()
        growth.step()
    again, regrown, reloaded, _ = begin()
    for part, state in zip((again, reloaded, regrown), states):
        part.load_state_dict(state)
    for step in range(3, 8):
        SMALL.loss(again, step).backward()
        reloaded.step()
        regrown.step()
    assert equal(list(model.parameters()), list(again.parameters()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps=2 keeps: use 1"),
        ({}, "called before growth.prepare"),
    ],
)
def test_loops_that_it_cannot_serve_are_refused(settings: dict[str, Any], message: str) -> None:
    accelerator = Accelerator(cpu=True, **settings)
    model = SMALL.build()
    growth = GrowthScheduler(model, GrowthConfig(stage_embedding=False), accelerator, blocks=["transformer_blocks.*"])
    wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(growth.parameters()))
    if settings:
        growth.prepare(wrapped, num_training_steps=8)
    with pytest.raises(OrderError, match=message):
        growth.step_in_backward(optimizer)
    accelerator.free_memory()


def test_a_gradient_scaler_of_the_loop_s_own_fails_at_once() -> None:
    model, _, optimizer, _ = begin()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(SMALL.loss(model, 0)).backward()
    with pytest.raises(OrderError, match=r"gradients were changed .*, clip_grad_value_ and a GradScaler do"):
        scaler.step(optimizer)
