"""Ways to train that a GPU is measured on, named by their flags."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from stage_runs import FULL
from torch import nn

from autoprog_diffusion import GrowthConfig
from autoprog_diffusion.training.optimizers import OPTIMIZERS, Settings


RANK = 16
RATE = 1e-6  # weights stay about where they are


@dataclass(frozen=True)
class Way:
    """One way to train a model.

    Attributes:
        growth: Settings of `GrowthConfig`.
        late: Whether blocks freeze on the schedule of the recipes; `growth` is on top of it.
        lora: Whether adapters train, and nothing else.
        optimizer: As `--optimizer` of the recipes; torch's AdamW is the fused one.
    """

    growth: dict[str, Any] = field(default_factory=dict)
    late: bool = False
    lora: bool = False
    optimizer: str = "adamw"

    @property
    def has_budget(self) -> bool:
        """Whether it computes as much again as a budget of memory asks for."""
        return self.growth.get("checkpointing") == "auto"

    def config(self, model: nn.Module, budget: float | None) -> GrowthConfig:
        """The configuration.

        Args:
            model: With its adapters.
            budget: In 10^9 bytes, of a way that has one.
        """
        settings = self.growth if budget is None else {**self.growth, "memory_gb": budget}
        return GrowthConfig.for_model(model, **settings) if self.late else GrowthConfig(**settings)

    def make_optimizer(self) -> Callable[[Any], torch.optim.Optimizer]:
        """Parameters -> optimizer."""
        settings = Settings(lr=RATE, fused=self.optimizer == "adamw")
        return lambda parameters: OPTIMIZERS[self.optimizer](parameters, settings)


ALL = {"checkpointing": "all"}
AUTO = {"checkpointing": "auto"}


def full(**fields: Any) -> Way:
    return Way({**FULL, **fields})


def window(parts: int, frozen_dtype: str, optimizer: str = "adamw") -> Way:
    growth = {"direction": "window", "num_stages": parts, "frozen_dtype": frozen_dtype, **ALL}
    return Way(growth, optimizer=optimizer)


def lora(**fields: Any) -> Way:
    return Way({**FULL, **fields}, lora=True)


# Whatever has a budget takes that of what full fine-tuning held, so `full` comes first.
WAYS = {
    "full": full(checkpointing="auto", memory_gb=1e6),
    "full, all again": full(**ALL),
    "full, auto": full(**AUTO),
    "full, all again, 8-bit Adam": Way({**FULL, **ALL}, optimizer="adamw8bit"),
    "late": Way(late=True),
    "late, all again": Way(ALL, late=True),
    "late, auto": Way(AUTO, late=True),
    "late, all again, frozen bf16": Way({**ALL, "frozen_dtype": "bfloat16"}, late=True),
    "window 1/4, all again, frozen bf16": window(4, "bfloat16"),
    "window 1/4, all again, frozen float8": window(4, "float8"),
    "window 1/8, all again, frozen nf4": window(8, "nf4"),
    "LoRA": lora(),
    "LoRA, all again": lora(**ALL),
    "LoRA grown": Way({"num_stages": 4, "stage_embedding": False}, lora=True),
    "LoRA, all again, frozen float8": lora(**ALL, frozen_dtype="float8"),
    "LoRA, all again, frozen nf4": lora(**ALL, frozen_dtype="nf4"),
}
