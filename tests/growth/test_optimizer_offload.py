"""Optimizer state in CPU memory: the same weights bit for bit, and on the device only what steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth import OrderError
from autoprog_diffusion.growth.memory import held_bytes
from autoprog_diffusion.growth.optimizer_offload import is_offloaded, offload_optimizer
from autoprog_diffusion.training.optimizers import OPTIMIZERS, Settings

from ..settings import BY_ID
from .looping import SMALL, scheduler


HERE = [name for name in OPTIMIZERS if name != "adamw8bit_bnb"]
QUICK = ("adamw", "adamw8bit")  # the others in the slow run
names = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in HERE]
STEPS = 6
TINY = 100  # bytes: a piece is one parameter, or two
WINDOWS: dict[str, Any] = {"direction": "window", "num_stages": 4, "sweeps": 2, "window_state": "park"}


class Run:
    """A small model with everything around it."""

    def __init__(self, name: str, *, away: bool, inside: bool, family: Any = SMALL, **settings: Any) -> None:
        self.family = family
        self.model = family.build().train()
        config = GrowthConfig(**{"stage_embedding": False, "rewarm_steps": 2, **WINDOWS, **settings})
        self.growth = scheduler(self.model, config, family=family)
        self.optimizer = OPTIMIZERS[name](self.growth.parameter_groups(), Settings(lr=1e-2))
        if away:
            offload_optimizer(self.optimizer, piece=TINY)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.growth.prepare(self.model, num_training_steps=STEPS, optimizer=self.optimizer)
        self.inside = inside
        if inside:
            self.growth.step_in_backward(self.optimizer, max_norm=0.1)

    def go(self, first: int, last: int) -> list[Tensor]:
        for step in range(first, last):
            self.family.loss(self.model, step).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
            self.growth.step()
        return [parameter.detach().clone() for parameter in self.growth.parameters()]

    @property
    def parts(self) -> list[Any]:
        return [self.model, self.optimizer, self.schedule, self.growth]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", names)
def test_the_weights_are_the_same_and_a_resumed_run_is_too(name: str, inside: bool) -> None:
    plain = Run(name, away=False, inside=inside).go(0, STEPS)
    away = Run(name, away=True, inside=inside)
    away.go(0, 4)
    states = copy.deepcopy([part.state_dict() for part in away.parts])
    assert all(map(torch.equal, plain, away.go(4, STEPS)))
    again = Run(name, away=True, inside=inside)
    for part, state in zip(again.parts, states):
        part.load_state_dict(state)
    assert all(map(torch.equal, plain, again.go(4, STEPS)))


@pytest.mark.parametrize("id", ["dit", "unet2d"])
def test_real_blocks_too(id: str) -> None:
    """Quantised state, of tensors that are large enough for it."""
    settings = {"direction": "freeze", "num_stages": 2, "sweeps": 1, "rewarm_steps": 0, "window_state": "release"}
    weights = []
    for away in (False, True):
        run = Run("adamw8bit", away=away, inside=False, family=BY_ID[id], **settings)
        weights.append(run.go(0, STEPS))
    assert all(map(torch.equal, *weights))


def places(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, set[str]]:
    """Devices of the moments of every parameter."""
    found = {}
    for parameter, values in optimizer.state.items():
        found[parameter] = {value.device.type for key, value in values.items() if key != "step"}
    return found


@pytest.mark.filterwarnings("ignore:.*Can't initialize NVML")
def test_on_the_device_is_what_steps_and_nothing_else() -> None:
    """Tensors of another device without numbers, which torch can do without the device."""
    with FakeTensorMode():
        weights = [nn.Parameter(torch.zeros(5, device="cuda")) for _ in range(4)]
        together: list[tuple[int, int]] = []

        class Noting(torch.optim.AdamW):
            def step(self, closure: Any = None) -> None:  # type: ignore[override]
                mine = {parameter for group in self.param_groups for parameter in group["params"]}
                for parameter, devices in places(self).items():
                    assert devices == ({"cuda"} if parameter in mine else {"cpu"})
                together.append((len(mine), len(self.state)))
                super().step()

        optimizer = Noting([{"params": weights[:3]}, {"params": weights[3:], "lr": 1.0}])
        offload_optimizer(optimizer, piece=40)
        for _ in range(2):
            for weight in weights:
                weight.grad = torch.zeros_like(weight)
            weights[1].grad = None
            optimizer.step()
            assert set(map(frozenset, places(optimizer).values())) == {frozenset({"cpu"})}
        # Two of 20 bytes, then the one that is left; the one without gradient has no state.
        assert together == [(2, 0), (1, 2), (2, 3), (1, 3)]
        # Two moments of both, which are not on the device any more.
        assert optimizer.moved_bytes == 80
        assert held_bytes(weights, [optimizer], bucketed=False).optimizer == 80
        optimizer.load_state_dict(optimizer.state_dict())
        assert set(map(frozenset, places(optimizer).values())) == {frozenset({"cpu"})}


def test_calls_that_come_too_late_are_refused() -> None:
    for prepare in (
        lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer),
        lambda optimizer: offload_optimizer(optimizer),
    ):
        optimizer = torch.optim.AdamW(SMALL.build().parameters())
        prepare(optimizer)
        with pytest.raises(OrderError, match="as soon as the optimizer is built|was called already"):
            offload_optimizer(optimizer)
    accelerator = Accelerator(cpu=True)
    model, wrapped = accelerator.prepare(SMALL.build(), torch.optim.AdamW(SMALL.build().parameters()))
    with pytest.raises(OrderError, match="after accelerator.prepare"):
        offload_optimizer(wrapped)
    accelerator.free_memory()


def test_accelerate_steps_and_saves_it_as_any_other(tmp_path: Any) -> None:
    weights = []
    for away in (False, True):
        accelerator = Accelerator(cpu=True)
        model = SMALL.build()
        config = GrowthConfig(stage_embedding=False)
        growth = GrowthScheduler(model, config, accelerator, blocks=["transformer_blocks.*"])
        optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-2)
        if away:
            offload_optimizer(optimizer, piece=TINY)
        wrapped, prepared = accelerator.prepare(model, optimizer)
        growth.prepare(wrapped, num_training_steps=4)
        assert is_offloaded(prepared) == away
        for step in range(4):
            if step == 2:
                accelerator.save_state(str(tmp_path / str(away)))
                accelerator.load_state(str(tmp_path / str(away)))
            accelerator.backward(SMALL.loss(wrapped, step))
            prepared.step()
            prepared.zero_grad()
            growth.step()
        weights.append([parameter.detach() for parameter in model.parameters()])
        accelerator._custom_objects.clear()
        accelerator.free_memory()
    assert all(map(torch.equal, *weights))
