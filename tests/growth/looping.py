"""Loops of a user's own around a scheduler, for the tests of misuse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler

from ..settings import BY_ID


DIT = BY_ID["dit"]
SD = BY_ID["sd"]  # takes adapters
UNET = BY_ID["unet2d"]
Parts = tuple[nn.Module, GrowthScheduler, torch.optim.Optimizer]


class Block(nn.Module):
    """A residual layer."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(6, 6)

    def forward(self, value: Tensor) -> Tensor:
        return value + self.to_q(value).tanh()


class Small(nn.Module):
    """A model whose step takes a millisecond: an input layer, eight blocks, an output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Linear(6, 6)
        self.transformer_blocks = nn.ModuleList(Block() for _ in range(8))
        self.proj_out = nn.Linear(6, 6)

    def forward(self, value: Tensor) -> Tensor:
        value = self.pos_embed(value)
        for block in self.transformer_blocks:
            value = block(value)
        return self.proj_out(value)


class SmallFamily:
    """The small model in the place of a family of Diffusers."""

    patterns = ("transformer_blocks.*",)

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        return Small()

    def loss(self, model: nn.Module, seed: int) -> Tensor:
        return model(torch.randn(2, 6, generator=torch.Generator().manual_seed(seed))).square().mean()


SMALL = SmallFamily()


def scheduler(model: nn.Module, config: GrowthConfig, *, family: Any = SMALL) -> GrowthScheduler:
    return GrowthScheduler(model, config, blocks=getattr(family, "patterns", None))


def begin(steps: int = 8, *, family: Any = SMALL, known: bool = True, **settings: Any) -> Parts:
    """A model in stage 0 of a plan that opens blocks from the output on, with an optimizer of everything."""
    model = family.build().train()
    half = {} if settings.get("direction") == "window" else {"min_trainable": 0.5}
    config = GrowthConfig(**{"num_stages": 2, "direction": "unfreeze", "stage_embedding": False, **half, **settings})
    growth = scheduler(model, config, family=family)
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-3)
    growth.prepare(model, num_training_steps=steps, optimizer=optimizer if known else None)
    return model, growth, optimizer


def add_adapter(model: Any) -> None:
    from peft import LoraConfig

    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))


def begin_adapters(**settings: Any) -> Parts:
    """A UNet of which only adapters train."""
    model = SD.build().train()
    model.requires_grad_(False)
    add_adapter(model)
    growth = GrowthScheduler(model, GrowthConfig(num_stages=2, **settings))
    optimizer = torch.optim.AdamW(growth.parameters())
    growth.prepare(model, num_training_steps=4, optimizer=optimizer if growth.config.direction == "freeze" else None)
    return model, growth, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, family: Any = SMALL) -> None:
    family.loss(model, step).backward()
    optimizer.step()
    optimizer.zero_grad()


def run(parts: Parts, steps: int, family: Any = SMALL) -> None:
    """Optimizer steps with their calls of `growth.step`."""
    model, growth, optimizer = parts
    for step in range(steps):
        train(model, optimizer, step, family)
        growth.step()
