"""Steps inside the backward pass: a loop that clips what has moved, and the gradients that a budget counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth import OrderError

from ..settings import BY_ID
from .looping import SMALL, Parts, begin


def begin_inside() -> Parts:
    model, growth, optimizer = begin()
    growth.step_in_backward(optimizer, max_norm=1.0)
    return model, growth, optimizer


def clip_norm(parameters: Any) -> None:
    nn.utils.clip_grad_norm_(parameters, 1e9)


def clip_value(parameters: Any) -> None:
    nn.utils.clip_grad_value_(parameters, 1e9)


def clip_by_hand(parameters: Any) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad.clamp(-1, 1)


@pytest.mark.parametrize("clip", [clip_norm, clip_value, clip_by_hand])
def test_a_loop_that_clips_what_has_moved_is_refused(clip: Any) -> None:
    model, _, optimizer = begin_inside()
    SMALL.loss(model, 0).backward()
    clip(model.parameters())
    with pytest.raises(OrderError, match=r"nothing was clipped: remove .*step_in_backward\(optimizer, max_norm="):
        optimizer.step()


def test_accelerate_s_clipping_is_noticed_too() -> None:
    accelerator = Accelerator(cpu=True)
    model = SMALL.build()
    growth = GrowthScheduler(model, GrowthConfig(stage_embedding=False), accelerator, blocks=["transformer_blocks.*"])
    wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(growth.parameters()))
    growth.prepare(wrapped, num_training_steps=8)
    growth.step_in_backward(optimizer)
    accelerator.backward(SMALL.loss(wrapped, 0))
    accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
    with pytest.raises(OrderError, match="nothing was clipped"):
        optimizer.step()
    accelerator.free_memory()


def test_looking_at_gradients_and_clipping_another_model_is_no_fault() -> None:
    """Nothing is left after the step, also where the loop never calls zero_grad."""
    model, growth, optimizer = begin_inside()
    other = nn.Linear(6, 1)
    optimizer.add_param_group({"params": list(other.parameters())})
    growth.step_in_backward(optimizer, max_norm=1.0)
    for step in range(3):
        (SMALL.loss(model, step) + other(torch.ones(6)).sum()).backward()
        assert sum(float(parameter.grad.norm()) for parameter in model.parameters() if parameter.grad is not None) > 0
        nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        optimizer.step()
        growth.step()
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("id", ["dit", "unet2d"])
def test_a_budget_counts_the_gradients_that_are_there_together(id: str) -> None:
    family = BY_ID[id]
    counted = []
    for inside in (False, True):
        model = family.build().train()
        settings: dict[str, Any] = {"checkpointing": "auto", "memory_gb": 1.0, "num_stages": 1, "min_trainable": 1.0}
        growth = GrowthScheduler(model, GrowthConfig(**settings))
        optimizer = torch.optim.AdamW(growth.parameters())
        growth.prepare(model, num_training_steps=2, optimizer=optimizer)
        alive = []

        def look(parameter: Any, growth: GrowthScheduler = growth, alive: list[int] = alive) -> None:
            held = [each.grad for each in growth.parameters() if each.grad is not None]
            alive.append(sum(gradient.numel() * gradient.element_size() for gradient in held))

        # Before the hook that steps, in the order of registration.
        for parameter in growth.parameters():
            parameter.register_post_accumulate_grad_hook(look)
        if inside:
            growth.step_in_backward(optimizer)
        family.loss(model, 0).backward()
        optimizer.step()
        growth.step()
        memory = growth.history[0].memory
        assert memory is not None
        assert memory["gradients"] == max(alive)
        counted.append(memory["gradients"])
    assert counted[1] < 0.6 * counted[0]
