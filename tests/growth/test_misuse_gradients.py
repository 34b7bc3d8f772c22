"""Blocks whose gradients never arrive: reentrant checkpointing behind a frozen front is told, with its cure."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from autoprog_diffusion import GrowthConfig, GrowthScheduler, OrderError

from .looping import DIT, SD, UNET, begin, begin_adapters, run


REENTRANT = functools.partial(checkpoint, use_reentrant=True)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_misuse_reentrant_checkpointing_behind_a_frozen_front() -> None:
    for family in (DIT, UNET):
        for settings in ({"direction": "unfreeze"}, {"direction": "freeze"}):
            parts = begin(family=family, order="suffix", num_stages=4, min_trainable=0.25, steps=4, **settings)
            parts[0].enable_gradient_checkpointing(gradient_checkpointing_func=REENTRANT)
            with pytest.raises(OrderError, match=r"no gradient arrives at .*use_reentrant=False"):
                run(parts, 4, family)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_misuse_reentrant_checkpointing_of_ones_own_around_some_blocks() -> None:
    model, growth, optimizer = begin(order="suffix")
    block = model.transformer_blocks[4]
    inner = block.forward
    block.forward = lambda *args, **kwargs: REENTRANT(lambda first: inner(first, *args[1:], **kwargs), args[0])
    with pytest.raises(OrderError, match=r"no gradient arrives at 1 of the 4 .*transformer_blocks.4.*use_reentrant"):
        run((model, growth, optimizer), 2)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_misuse_reentrant_checkpointing_in_a_loop_of_ones_own() -> None:
    """The first step tells, without any flag of a library."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
            self.head = nn.Linear(3, 3)

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                value = REENTRANT(block, value)
            return self.head(value)

    model = Model()
    growth = GrowthScheduler(
        model, GrowthConfig(num_stages=4, direction="unfreeze", stage_embedding=False), blocks=["blocks.*"]
    )
    optimizer = torch.optim.AdamW(growth.parameters())
    growth.prepare(model, num_training_steps=4)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(OrderError, match=r"no gradient arrives at 1 of the 1 .*blocks.3.*use_reentrant=False"):
        growth.step()


def test_misuse_reentrant_checkpointing_that_computes_the_front_again() -> None:
    parts = begin(family=UNET, order="suffix", stage_embedding=None)
    parts[0].enable_gradient_checkpointing(gradient_checkpointing_func=REENTRANT)
    with pytest.raises(OrderError, match=r"computed again in the backward pass.*use_reentrant=False"):
        run(parts, 1, UNET)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_misuse_reentrant_checkpointing_of_adapters() -> None:
    model, growth, optimizer = begin_adapters(direction="freeze")
    # Without anything else that trains, torch itself says that nothing requires gradient.
    head = nn.Linear(4, 4)
    optimizer.add_param_group({"params": list(head.parameters())})
    model.conv_out.register_forward_hook(lambda module, args, out: head(out.movedim(1, -1)).movedim(-1, 1))
    model.enable_gradient_checkpointing(gradient_checkpointing_func=REENTRANT)
    with pytest.raises(OrderError, match="no gradient arrives at .*enable_input_require_grads"):
        run((model, growth, optimizer), 4, SD)
