"""Diffusers' own `EMAModel` beside a run that freezes or opens blocks."""

from __future__ import annotations

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth import OrderError

from .preparing import DIT


STEPS = 6


def start(direction: str = "freeze") -> tuple[nn.Module, GrowthScheduler, torch.optim.Optimizer]:
    model = DIT.build().train()
    growth = GrowthScheduler(model, GrowthConfig(num_stages=3, direction=direction))  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-2)
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    return model, growth, optimizer


def update(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    DIT.loss(model, seed).backward()
    optimizer.step()
    optimizer.zero_grad()


def average(old: Tensor, new: Tensor, steps: int) -> Tensor:
    """The literal moving average with Diffusers' warm-up of the decay, after `steps` updates."""
    decay = 0.0 if steps == 1 else steps / (9 + steps)
    return decay * old + (1 - decay) * new


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("direction", ["freeze", "unfreeze", "window"])
def test_every_average_is_the_literal_one(direction: str, foreach: bool) -> None:
    model, growth, optimizer = start(direction)
    ema = EMAModel(model.parameters(), foreach=foreach)
    wanted = [parameter.detach().clone() for parameter in model.parameters()]
    for step in range(1, STEPS + 1):
        update(model, optimizer, step)
        ema.step(growth.ema_parameters())
        wanted = [average(old, new.detach(), step) for old, new in zip(wanted, model.parameters())]
        growth.step()
    assert len(ema.shadow_params) == len(wanted)
    for found, literal in zip(ema.shadow_params, wanted):
        torch.testing.assert_close(found, literal)


def test_an_average_of_some_parameters_gets_those() -> None:
    model, growth, optimizer = start()
    chosen = [parameter for name, parameter in model.named_parameters() if name.startswith("transformer_blocks.0.")]
    ema = EMAModel(chosen)
    for step in range(STEPS):
        update(model, optimizer, step)
        ema.step(growth.ema_parameters(chosen))
        growth.step()
    frozen = [parameter for parameter in chosen if not parameter.requires_grad]
    assert frozen
    assert all(parameter.requires_grad for parameter in growth.ema_parameters(chosen))
    assert any(not torch.equal(shadow, raw) for shadow, raw in zip(ema.shadow_params, chosen))


def test_the_parameters_share_memory_with_a_model_that_moved() -> None:
    model, growth, _ = start("unfreeze")
    growth.ema_parameters()
    model.double()
    found = growth.ema_parameters()
    assert all(ours.is_set_to(theirs) for ours, theirs in zip(found, model.parameters(), strict=True))


@pytest.mark.parametrize("direction", ["freeze", "window"])
def test_a_forgotten_average_is_an_error_before_anything_freezes(direction: str) -> None:
    model, growth, optimizer = start(direction)
    ema = EMAModel(model.parameters())
    update(model, optimizer, 0)
    ema.step(model.parameters())
    with pytest.raises(OrderError, match=r"write ema_unet\.step\(growth\.ema_parameters\(\)\) instead of"):
        growth.step()


def test_an_average_that_begins_late_is_found_where_blocks_freeze() -> None:
    model, growth, _ = start()
    growth.step()
    ema = EMAModel(model.parameters())
    ema.step(model.parameters())
    with pytest.raises(OrderError, match=r"without growth\.ema_parameters"):
        growth.step()


def test_unfreezing_asks_for_nothing() -> None:
    model, growth, optimizer = start("unfreeze")
    ema = EMAModel(model.parameters())
    for step in range(STEPS):
        update(model, optimizer, step)
        ema.step(model.parameters())
        growth.step()


def test_averages_of_other_models_and_of_earlier_runs_are_left_alone() -> None:
    model = DIT.build()
    earlier = EMAModel(model.parameters())
    earlier.step(model.parameters())
    other = nn.Linear(2, 2)
    average_of_other = EMAModel(other.parameters())
    _, growth, _ = start()
    average_of_other.step(other.parameters())
    growth.step()
    assert earlier.optimization_step == 1


def test_an_average_that_a_checkpoint_brought_was_not_stepped() -> None:
    _, saved, _ = start()
    saved.step()
    model, growth, _ = start()
    ema = EMAModel(model.parameters())
    ema.load_state_dict({**ema.state_dict(), "optimization_step": 1})
    growth.load_state_dict(saved.state_dict())
    growth.step()
