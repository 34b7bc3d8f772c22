"""Damaged plans and settings: each is refused, or the model trains exactly as it says."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprog_diffusion.growth import GrowthConfig, GrowthPlan, GrowthScheduler

from .mutate import ODD, changed_value, damaged, require


BLOCKS = 6
STEPS = 8


class Stack(nn.Module):
    """A model of six blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(BLOCKS)])
        self.head = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 4) -> (N, 1)."""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


class Plans:
    """A plan's file, damaged as text or as values."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "growth_plan.json"
        model = Stack()
        growth = GrowthScheduler(model, GrowthConfig(num_stages=3), blocks=["layers.*"])
        optimizer = torch.optim.SGD(growth.parameters(), lr=0.1)
        growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
        growth.plan.save(self._path)
        self._text = self._path.read_bytes()

    def case(self, chance: random.Random) -> str:
        """Load the plan, and follow it."""
        if chance.random() < 0.5:
            content = damaged(chance, self._text)
        else:
            values = json.loads(self._text)
            for _ in range(chance.choice([1, 1, 2, 3])):
                values = changed_value(chance, values)
            content = json.dumps(values if chance.random() < 0.8 else {"plan": values}).encode()
        self._path.write_bytes(content)
        plan = GrowthPlan.load(self._path)
        require(GrowthPlan.from_dict(plan.to_dict()) == plan, f"the plan does not survive a save: {plan}")
        follow(GrowthConfig(num_stages=len(plan.stages)), plan)
        return "followed"


class Settings:
    """`GrowthConfig` with odd values, directly and from a file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "growth_config.json"
        self._fields = [field.name for field in fields(GrowthConfig)]
        GrowthConfig().save(self._path)
        self._text = self._path.read_bytes()

    def case(self, chance: random.Random) -> str:
        """Make settings, and train under them."""
        if chance.random() < 0.3:
            self._path.write_bytes(damaged(chance, self._text))
            config = GrowthConfig.load(self._path)
        else:
            config = GrowthConfig(**self._values(chance))
        again = GrowthConfig.from_dict(config.to_dict())
        require(again == config, f"the settings do not survive a save: {asdict(config)}")
        follow(config, None)
        return "followed"

    def _values(self, chance: random.Random) -> dict[str, Any]:
        plausible: dict[str, Any] = {
            "num_stages": chance.randrange(1, 5),
            "order": chance.choice(["interleaved", "suffix", "prefix"]),
            "direction": chance.choice([None, "freeze", "unfreeze", "window"]),
            "sweeps": chance.choice([1, 2, 3]),
            "window_share": chance.choice([None, 0.3, 0.5, 1.0]),
            "window_state": chance.choice(["release", "park"]),
            "min_trainable": chance.choice([0.1, 0.25, 0.5, 1.0]),
            "boundaries": chance.choice([None, [2, 4], [0.3, 0.6], [1], (3, 5, 6)]),
            "resolutions": chance.choice([None, [0.5, 1.0], [8, 16, 24], (0.25, 0.5, 1, 1)]),
            "rewarm_steps": chance.choice([0, 2]),
        }
        names = chance.sample(sorted(plausible), chance.randrange(4))
        values = {name: plausible[name] for name in names}
        for _ in range(chance.choice([0, 1, 1, 2])):
            values[chance.choice(self._fields)] = chance.choice(ODD)
        return values


def follow(config: GrowthConfig, plan: GrowthPlan | None) -> None:
    """Train a small model to the end; what moves must be what the plan says."""
    model = Stack()
    growth = GrowthScheduler(model, config, blocks=["layers.*"])
    optimizer = torch.optim.SGD(growth.parameter_groups(), lr=0.1)
    steps = STEPS if plan is None else plan.num_training_steps
    if steps > 200:
        return
    growth.prepare(model, num_training_steps=steps, plan=plan, optimizer=optimizer)
    require(plan is None or growth.plan == plan, f"the plan {plan} became {growth.plan}")
    for step in range(steps):
        allowed = set(growth.plan.stages[growth.plan.stage_at(step)].blocks)
        before = [layer.weight.detach().clone() for layer in model.layers]
        model(torch.randn(4, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = {index for index, layer in enumerate(model.layers) if not torch.equal(layer.weight, before[index])}
        if not config.rewarm_steps:
            require(moved == allowed, f"step {step} trains {moved}, the plan says {allowed}")
        require(moved <= allowed, f"step {step} trains {moved}, the plan says {allowed}")
        growth.step()
    growth.fold(model)
