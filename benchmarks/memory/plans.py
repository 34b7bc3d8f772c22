"""What a run trains and how it holds it: the plans that are compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


FULL = {"num_stages": 1, "stage_embedding": False}
RANK = 16


@dataclass(frozen=True)
class Plan:
    """A way to train a model.

    Attributes:
        name: For tables.
        growth: Settings of `GrowthConfig`.
        optimizer: As `--optimizer` of the recipes.
        trained_dtype: As `--trained_dtype`: bfloat16 rounds stochastically.
        checkpointing: Blocks that compute their activations again in the backward pass: `none` or `all`.
        lora: Rank of LoRA adapters, which then train alone.
        autocast: Whether the forward pass runs under bfloat16 autocast.
    """

    name: str
    growth: dict[str, Any] = field(default_factory=lambda: dict(FULL))
    optimizer: str = "adamw"
    trained_dtype: str = "float32"
    checkpointing: str = "none"
    lora: int | None = None
    autocast: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def window(parts: int) -> dict[str, Any]:
    """One sweep of windows of a part of the blocks each."""
    return {"direction": "window", "num_stages": parts}


LOW = {"trained_dtype": "bfloat16", "checkpointing": "all"}
PLANS = {
    plan.name: plan
    for plan in (
        Plan("full"),
        Plan("full, checkpointing", checkpointing="all"),
        Plan("full, 8-bit Adam, checkpointing", optimizer="adamw8bit", checkpointing="all"),
        Plan("full, bf16 weights, 8-bit Adam, checkpointing", optimizer="adamw8bit", **LOW),
        Plan("full, bf16 weights, 4-bit Adam, checkpointing", optimizer="adamw4bit", **LOW),
        Plan("freeze", {}),
        Plan("freeze, checkpointing", {}, checkpointing="all"),
        Plan("window 1/8, checkpointing", window(8), checkpointing="all"),
        Plan("window 1/8, bf16 weights, 8-bit Adam, checkpointing", window(8), optimizer="adamw8bit", **LOW),
        Plan("LoRA", lora=RANK),
        Plan("LoRA, checkpointing", lora=RANK, checkpointing="all"),
    )
}
