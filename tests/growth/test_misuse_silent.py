"""Loops that do unusual but legitimate things: no check of misuse may speak up (warnings are errors here)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler

from .looping import DIT, SD, SMALL, Parts, begin, begin_adapters, run, scheduler, train


DIRECTIONS = pytest.mark.parametrize("direction", ["freeze", "unfreeze"])
STEPS = 4


def finish(parts: Parts) -> None:
    """Train to the end and fold."""
    model, growth, _ = parts
    run(parts, growth.plan.num_training_steps)
    growth.fold(model)


@DIRECTIONS
@pytest.mark.parametrize("order", ["suffix", "prefix", "interleaved"])
def test_misuse_silent_plain_loop(direction: Any, order: Any) -> None:
    finish(begin(STEPS, direction=direction, order=order, num_stages=4, min_trainable=0.25))


def test_misuse_silent_optimizer_that_is_never_passed() -> None:
    finish(begin(STEPS, known=False))


def test_misuse_silent_optimizer_built_after_prepare_from_everything() -> None:
    model = DIT.build().train()
    growth = GrowthScheduler(model, GrowthConfig(direction="unfreeze"))
    growth.prepare(model, num_training_steps=STEPS)
    run((model, growth, torch.optim.SGD(growth.parameters(), lr=1e-3)), STEPS, DIT)
    growth.fold(model)


@pytest.mark.parametrize("known", [True, False])
def test_misuse_silent_several_optimizers(known: bool) -> None:
    """Two optimizers share the model; one may step every second time, another belongs to another model."""
    model = SMALL.build()
    growth = scheduler(model, GrowthConfig(direction="unfreeze", stage_embedding=False))
    parameters = list(growth.parameters())
    optimizers = [torch.optim.SGD(parameters[::2], lr=1e-3), torch.optim.AdamW(parameters[1::2], lr=1e-3)]
    other = nn.Linear(2, 2)
    foreign = torch.optim.SGD(other.parameters(), lr=0.1)
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizers if known else None)
    for step in range(STEPS):
        other(torch.ones(2)).sum().backward()
        foreign.step()
        SMALL.loss(model, step).backward()
        for optimizer in optimizers[: 1 + step % 2]:
            optimizer.step()
            optimizer.zero_grad()
        growth.step()
    growth.fold(model)


def test_misuse_silent_alternating_models() -> None:
    """As in adversarial training: every second step belongs to the other model."""
    model, growth, optimizer = begin(steps=24)
    other = nn.Linear(2, 2)
    foreign = torch.optim.SGD(other.parameters(), lr=0.1)
    for step in range(24):
        if step % 2:
            train(model, optimizer, step)
        else:
            other(torch.ones(2)).sum().backward()
            foreign.step()
        growth.step()
    growth.fold(model)


@DIRECTIONS
def test_misuse_silent_frozen_by_the_user(direction: Any) -> None:
    model = SMALL.build()
    model.pos_embed.requires_grad_(False)
    model.transformer_blocks[2].requires_grad_(False)
    growth = scheduler(model, GrowthConfig(direction=direction, stage_embedding=False))
    optimizer = torch.optim.AdamW([p for p in growth.parameters() if p.requires_grad], lr=1e-3)
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    # The user's own: not among those that growth ever trains.
    with torch.no_grad():
        model.transformer_blocks[2].to_q.weight.add_(1.0)
    finish((model, growth, optimizer))
    assert not model.transformer_blocks[2].to_q.weight.requires_grad


@DIRECTIONS
def test_misuse_silent_adapters(direction: Any) -> None:
    """B is zero at first: the gradient of A is a tensor of zeros."""
    model, growth, optimizer = begin_adapters(direction=direction)
    run((model, growth, optimizer), 2, SD)
    model.fuse_lora()
    model.unfuse_lora()
    run((model, growth, optimizer), 2, SD)
    growth.fold(model)


def test_misuse_silent_another_mode_and_flags_put_back() -> None:
    model, growth, optimizer = begin(STEPS)
    for step in range(STEPS):
        train(model, optimizer, step)
        flags = [parameter.requires_grad for parameter in model.parameters()]
        model.eval().requires_grad_(False)
        SMALL.loss(model, 0)
        for parameter, flag in zip(model.train().parameters(), flags):
            parameter.requires_grad_(flag)
        growth.step()
    growth.fold(model)


@DIRECTIONS
@pytest.mark.parametrize("foreach", [True, False])
def test_misuse_silent_average_for_validation(direction: Any, foreach: bool) -> None:
    model, growth, optimizer = begin(STEPS, direction=direction)
    average = EMAModel(model.parameters(), foreach=foreach)
    for step in range(STEPS):
        train(model, optimizer, step)
        average.step(growth.ema_parameters())
        growth.step()
        average.store(model.parameters())
        average.copy_to(model.parameters())
        with torch.no_grad():
            SMALL.loss(model, 0)
        average.restore(model.parameters())
    average.copy_to(model.parameters())
    growth.fold(model)


@DIRECTIONS
@pytest.mark.parametrize("kill", [1, 2])
@pytest.mark.parametrize("order", ["growth first", "growth last"])
def test_misuse_silent_resume(direction: Any, kill: int, order: str) -> None:
    model, growth, optimizer = begin(STEPS, direction=direction)
    run((model, growth, optimizer), kill)
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict(), growth.state_dict()])
    model, growth, optimizer = begin(STEPS, direction=direction)
    run((model, growth, optimizer), 1)  # as a test of the loop before it resumes
    if order == "growth first":
        growth.load_state_dict(saved[2])
    with torch.no_grad():
        model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    if order == "growth last":
        growth.load_state_dict(saved[2])
    run((model, growth, optimizer), STEPS - kill)
    growth.fold(model)


def test_misuse_silent_weights_that_are_accepted() -> None:
    model, growth, optimizer = begin(STEPS)
    run((model, growth, optimizer), 2)
    model.load_state_dict({name: value + 0.1 for name, value in model.state_dict().items()})
    growth.load_state_dict(growth.state_dict())
    run((model, growth, optimizer), STEPS - 2)


# Optimizer steps that are left out


class Skipping(torch.amp.GradScaler):
    """A gradient scaler that finds an overflow in every third step."""

    calls = 0

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        Skipping.calls += 1
        if Skipping.calls % 3 == 0:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.fill_(float("inf"))
        return super().step(optimizer, *args, **kwargs)


@pytest.mark.parametrize("zero", ["after", "before"])
@pytest.mark.parametrize("to_none", [True, False])
def test_misuse_silent_gradient_scaler_that_skips(zero: str, to_none: bool) -> None:
    model, growth, optimizer = begin(steps=24)
    scaler = Skipping("cpu", init_scale=4.0)
    for step in range(24):
        if zero == "before":
            optimizer.zero_grad(set_to_none=to_none)
        scaler.scale(SMALL.loss(model, step)).backward()
        scaler.step(optimizer)
        scaler.update()
        if zero == "after":
            optimizer.zero_grad(set_to_none=to_none)
        growth.step()
    assert growth.stage == 1
    growth.fold(model)


@pytest.mark.parametrize("to_none", [True, False])
def test_misuse_silent_steps_that_the_loop_leaves_out(to_none: bool) -> None:
    """Where a gradient is too large; it is set to zero before the next backward pass."""
    model, growth, optimizer = begin(steps=24)
    for step in range(24):
        optimizer.zero_grad(set_to_none=to_none)
        SMALL.loss(model, step).backward()
        nn.utils.clip_grad_norm_(growth.parameters(), 1.0)
        if step not in (3, 4, 9, 15, 16, 17):
            optimizer.step()
        growth.step()
    growth.fold(model)


@DIRECTIONS
@pytest.mark.parametrize("accumulation", [2, 3])
def test_misuse_silent_accumulation(direction: Any, accumulation: int) -> None:
    model, growth, optimizer = begin(STEPS, direction=direction)
    for micro in range(accumulation * STEPS):
        SMALL.loss(model, micro).backward()
        if (micro + 1) % accumulation == 0:
            optimizer.step()
            optimizer.zero_grad()
            growth.step()
    growth.fold(model)


def test_misuse_silent_no_zero_grad() -> None:
    model, growth, optimizer = begin(STEPS)
    for step in range(STEPS):
        SMALL.loss(model, step).backward()
        optimizer.step()
        growth.step()
    growth.fold(model)


def test_misuse_silent_optimizer_per_parameter_in_the_backward_pass() -> None:
    model = SMALL.build()
    growth = scheduler(model, GrowthConfig(direction="unfreeze", stage_embedding=False))
    growth.prepare(model, num_training_steps=STEPS)
    optimizers = {parameter: torch.optim.SGD([parameter], lr=1e-3) for parameter in growth.parameters()}

    def step(parameter: Any) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    frozen = {parameter for parameter in optimizers if not parameter.requires_grad}
    for parameter in optimizers:
        # torch hooks only what requires gradient; growth itself never looks at these hooks.
        flag = parameter.requires_grad
        parameter.requires_grad_(True).register_post_accumulate_grad_hook(step)
        parameter.requires_grad_(flag)
    assert frozen
    for seed in range(STEPS):
        SMALL.loss(model, seed).backward()
        growth.step()
    growth.fold(model)


def test_misuse_silent_moved_to_another_device_and_back() -> None:
    """`model.to` keeps the parameters; on a machine with one device the round trip is one of the memory only."""
    model, growth, optimizer = begin(STEPS)
    for step in range(STEPS):
        train(model, optimizer, step)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone(memory_format=torch.preserve_format)
        growth.step()
    growth.fold(model)


def test_misuse_silent_channels_last_and_half_precision() -> None:
    model = SD.build().train().to(memory_format=torch.channels_last)
    growth = GrowthScheduler(model, GrowthConfig(num_stages=2, stage_embedding=False))
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-3)
    growth.prepare(model, num_training_steps=4, optimizer=optimizer)
    run((model, growth, optimizer), 4, SD)
    growth.fold(model)


@pytest.mark.parametrize("known", [True, False])
def test_misuse_silent_compiled_optimizer_step(known: bool) -> None:
    """Its hooks are traced away: nothing is heard, and nothing concluded."""
    model, growth, optimizer = begin(STEPS, known=known)

    @torch.compile(backend="eager")
    def step() -> None:
        optimizer.step()

    for seed in range(STEPS):
        optimizer.zero_grad()
        SMALL.loss(model, seed).backward()
        step()
        growth.step()
    growth.fold(model)


def test_misuse_silent_compiled_model() -> None:
    model, growth, optimizer = begin(8)
    torch._dynamo.utils.counters.clear()
    called = torch.compile(model, backend="eager")
    for seed in range(8):
        train(called, optimizer, seed)
        growth.step()
    assert not torch._dynamo.utils.counters["graph_break"]
    growth.fold(called)
