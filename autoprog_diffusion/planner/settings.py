"""`Plan`: what a run trains and how it holds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """A way to train a model.

    Attributes:
        name: For tables.
        growth: Settings of `GrowthConfig`: what trains, how frozen weights are held, what is computed again.
        optimizer: As `--optimizer` of the recipes.
        trained_dtype: As `--trained_dtype`: bfloat16 rounds stochastically.
        step_in_backward: As `--step_in_backward`: a block steps as soon as its gradients are there.
        lora: Rank of LoRA adapters, which then train alone.
        autocast: Whether the forward pass runs under bfloat16 autocast.
    """

    name: str
    growth: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"
    trained_dtype: str = "float32"
    step_in_backward: bool = False
    lora: int | None = None
    autocast: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)
