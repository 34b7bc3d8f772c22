"""More loops of users: a model that is grown already, casts and back, blocks and optimizers of another kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler, OrderError, UnitError

from .looping import DIT, SMALL, begin, run, scheduler, train


DIRECTIONS = pytest.mark.parametrize("direction", ["freeze", "unfreeze", "window"])
STEPS = 8


# A second growth object


@pytest.mark.parametrize("steps", [0, 5])
def test_misuse_a_model_that_is_grown_already(steps: int) -> None:
    """A notebook's cell that was interrupted runs again: what is frozen by now would never train."""
    model, growth, optimizer = begin(STEPS)
    run((model, growth, optimizer), steps)
    with pytest.raises(OrderError, match="is being grown by another GrowthScheduler.*load the model again"):
        scheduler(model, GrowthConfig(stage_embedding=False))
    del growth
    with pytest.raises(OrderError, match="is being grown by another GrowthScheduler"):
        scheduler(model, GrowthConfig(stage_embedding=False))


def test_misuse_two_schedulers_prepare_one_model() -> None:
    model = SMALL.build()
    both = [scheduler(model, GrowthConfig(direction="unfreeze", stage_embedding=False)) for _ in range(2)]
    both[0].prepare(model, num_training_steps=STEPS)
    with pytest.raises(OrderError, match="requires_grad of|is being grown by another GrowthScheduler"):
        both[1].prepare(model, num_training_steps=STEPS)


def test_misuse_silent_one_run_after_the_other() -> None:
    model = DIT.build().train()
    for _ in range(2):
        growth = GrowthScheduler(model, GrowthConfig())
        optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-3)
        growth.prepare(model, num_training_steps=2, optimizer=optimizer)
        run((model, growth, optimizer), 2, DIT)
        growth.fold(model)


def test_misuse_silent_a_scheduler_that_was_never_prepared() -> None:
    model = SMALL.build()
    scheduler(model, GrowthConfig(stage_embedding=False))
    growth = scheduler(model, GrowthConfig(stage_embedding=False))
    optimizer = torch.optim.AdamW(growth.parameters())
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    run((model, growth, optimizer), STEPS)
    growth.fold(model)


# Weights


def test_misuse_a_cast_to_half_precision_and_back() -> None:
    model, growth, optimizer = begin(STEPS)
    run((model, growth, optimizer), 1)
    train(model, optimizer, 1)
    model.half().float()
    with pytest.raises(OrderError, match="frozen parameters have moved .*a cast to half precision and back"):
        growth.step()


def test_misuse_silent_a_cast_of_a_copy_and_weights_put_back() -> None:
    model, growth, optimizer = begin(STEPS)
    for step in range(STEPS):
        train(model, optimizer, step)
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        model.half().float()
        model.load_state_dict(weights)
        growth.step()
    growth.fold(model)


# Blocks that a loop calls itself


def forward(model: Any, value: Tensor, blocks: range) -> Tensor:
    """The model's forward by a user's own hand, with some of its blocks."""
    value = model.pos_embed(value)
    for index in blocks:
        value = model.transformer_blocks[index](value)
    return model.proj_out(value)


@DIRECTIONS
@pytest.mark.parametrize("validate", [True, False])
def test_misuse_silent_a_loop_that_calls_the_blocks_itself(direction: Any, validate: bool) -> None:
    """Another pass begins where the last one ended: that is no block out of order."""
    model, growth, optimizer = begin(STEPS, direction=direction)
    for step in range(STEPS):
        # Every second step leaves the last blocks out.
        blocks = range(8) if step % 2 else range(6)
        forward(model, torch.randn(2, 6), blocks).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if validate:
            with torch.no_grad():
                SMALL.loss(model, 0)
        growth.step()
    growth.fold(model)


class Turned(nn.Module):
    """Runs its blocks from the last to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, value: Tensor) -> Tensor:
        for index in (3, 2, 1, 0):
            value = self.blocks[index](value)
        return value


def test_misuse_blocks_that_run_in_another_order() -> None:
    model = Turned()
    config = GrowthConfig(num_stages=2, direction="unfreeze", stage_embedding=False)
    growth = GrowthScheduler(model, config, blocks=["blocks.*"])
    growth.prepare(model, num_training_steps=STEPS)
    with pytest.raises(UnitError, match="ran after a block that trains"):
        model(torch.randn(2, 4))


# Optimizers


def adafactor(parameters: Any) -> Any:
    from transformers.optimization import Adafactor

    return Adafactor(parameters, lr=1e-3, relative_step=False, scale_parameter=False, weight_decay=0.1)


def split(parameters: Any) -> Any:
    """Weights decay, biases do not."""
    parameters = list(parameters)
    weights = [parameter for parameter in parameters if parameter.dim() > 1]
    biases = [parameter for parameter in parameters if parameter.dim() <= 1]
    return torch.optim.AdamW([{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}])


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "fused": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "foreach": lambda parameters: torch.optim.AdamW(parameters, foreach=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
    "rprop": torch.optim.Rprop,
    "adafactor": adafactor,
    "split": split,
}


@DIRECTIONS
@pytest.mark.parametrize("to_none", [True, False])
def test_misuse_silent_optimizers(direction: Any, to_none: bool) -> None:
    for make in OPTIMIZERS.values():
        model = SMALL.build()
        growth = scheduler(model, GrowthConfig(direction=direction, stage_embedding=False))
        optimizer = make(growth.parameters())
        growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
        for step in range(STEPS):
            SMALL.loss(model, step).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)
            growth.step()
        growth.fold(model)


@DIRECTIONS
def test_misuse_silent_an_optimizer_that_computes_the_loss_again(direction: Any) -> None:
    model = SMALL.build()
    growth = scheduler(model, GrowthConfig(direction=direction, stage_embedding=False))
    optimizer = torch.optim.LBFGS(growth.parameters(), lr=0.1, max_iter=3)
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = SMALL.loss(model, 0)
        loss.backward()
        return loss

    for _ in range(STEPS):
        optimizer.step(closure)
        growth.step()
    growth.fold(model)


@DIRECTIONS
def test_misuse_silent_a_text_encoder_that_trains_first(direction: Any) -> None:
    """As in pivotal tuning: an embedding trains alone, then the model."""
    model, growth, optimizer = begin(STEPS, direction=direction)
    embedding = nn.Embedding(10, 6)
    other = torch.optim.AdamW(embedding.parameters())
    for step in range(STEPS):
        model(embedding(torch.tensor([step]))).square().mean().backward()
        chosen = other if step < 3 else optimizer
        chosen.step()
        optimizer.zero_grad()
        other.zero_grad()
        growth.step()
    growth.fold(model)
