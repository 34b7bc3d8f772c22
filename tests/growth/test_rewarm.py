"""Re-warm-up of the learning rate of newly opened blocks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth import ConfigError, OrderError


class Watched(torch.optim.SGD):
    """Notes the learning rates that every step really used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.used: list[dict[str, float]] = []

    def step(self, closure: Any = None) -> Any:
        self.used.append({group["name"]: group["lr"] for group in self.param_groups})
        return super().step(closure)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
        self.head = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def start(rewarm: int = 2, accelerator: Accelerator | None = None) -> tuple[Any, ...]:
    torch.manual_seed(0)
    model = Tower()
    config = GrowthConfig(
        num_stages=2,
        min_trainable=0.5,
        order="suffix",
        stage_embedding=False,
        rewarm_steps=rewarm,
        direction="unfreeze",
    )
    growth = GrowthScheduler(model, config, accelerator, blocks=["layers.*"])
    optimizer = Watched(growth.parameter_groups(), lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return model, growth, optimizer, schedule


def run(model: nn.Module, growth: GrowthScheduler, optimizer: Any, schedule: Any, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        (1e-3 * model(torch.randn(4, 2, generator=generator)).square().mean()).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        growth.step()


def test_opened_blocks_start_low_and_the_schedule_is_left_alone() -> None:
    model, growth, optimizer, schedule = start()
    growth.prepare(model, num_training_steps=8, optimizer=optimizer)
    run(model, growth, optimizer, schedule, range(8))
    scheduled = [1 / (1 + step) for step in range(8)]
    for old in ("layers.2", "layers.3", "outputs"):
        assert [used[old] for used in optimizer.used] == scheduled
    for new in ("layers.0", "layers.1", "inputs"):
        factors = [used[new] / rate for used, rate in zip(optimizer.used, scheduled)]
        assert factors[4:] == [0.5, 1.0, 1.0, 1.0]
    assert [group["lr"] for group in optimizer.param_groups] == [1 / 9] * len(optimizer.param_groups)
    growth.fold(model)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_resumed_run_goes_on_before_and_in_the_middle_of_a_rewarm_up(stop: int) -> None:
    model, growth, optimizer, schedule = start(rewarm=4)
    growth.prepare(model, num_training_steps=8, optimizer=optimizer)
    run(model, growth, optimizer, schedule, range(stop))
    states = copy.deepcopy([part.state_dict() for part in (model, growth, optimizer, schedule)])
    run(model, growth, optimizer, schedule, range(stop, 8))
    again = start(rewarm=4)
    again[1].prepare(again[0], num_training_steps=8, optimizer=again[2])
    for part, state in zip(again, states):
        part.load_state_dict(state)
    run(*again, range(stop, 8))
    assert again[2].used == optimizer.used[stop:]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again[0].parameters()))


def test_it_finds_the_optimizer_of_an_accelerator() -> None:
    accelerator = Accelerator(cpu=True)
    model, growth, optimizer, schedule = start(rewarm=4, accelerator=accelerator)
    model, wrapped = accelerator.prepare(model, optimizer)
    growth.prepare(model, num_training_steps=8)
    run(model, growth, wrapped, schedule, range(8))
    factors = [used["layers.0"] * (1 + step) for step, used in enumerate(optimizer.used)]
    assert factors[4:] == [0.25, 0.5, 0.75, 1.0]
    accelerator.free_memory()


def test_one_group_for_all_is_refused() -> None:
    model, growth, _, _ = start()
    with pytest.raises(OrderError, match=r"rewarm_steps=2 needs.*growth.parameter_groups\(\)"):
        growth.prepare(model, num_training_steps=8, optimizer=torch.optim.AdamW(growth.parameters()))
    model, growth, _, _ = start()
    with pytest.raises(OrderError, match="rewarm_steps=2 needs an optimizer"):
        growth.prepare(model, num_training_steps=8)
    with pytest.raises(ConfigError, match="rewarm_steps=-1 is not allowed"):
        GrowthConfig(rewarm_steps=-1)
