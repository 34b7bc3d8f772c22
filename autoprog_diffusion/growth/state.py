"""What a checkpoint of a `GrowthScheduler` holds, and the refusal of one that belongs elsewhere."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from .errors import StateError
from .plan import GrowthPlan
from .units import Layout


STATE_VERSION = 1


@dataclass(frozen=True)
class StageRecord:
    """What happened when a stage was entered.

    Attributes:
        stage: Its index.
        step: Optimizer step (counted from 0) it was entered at.
        blocks: Names of the blocks that train.
        trainable_parameters: Number of the model's parameters that train.
        trainable_fraction: The same over all of the model's parameters.
        resolution: Fraction of the data's size (float) or pixels (int).
    """

    stage: int
    step: int
    blocks: tuple[str, ...]
    trainable_parameters: int
    trainable_fraction: float
    resolution: float | int

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return {**asdict(self), "blocks": list(self.blocks)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StageRecord:
        """The record that `to_dict` wrote."""
        return cls(**{**values, "blocks": tuple(values["blocks"])})


def fingerprint(model: nn.Module, layout: Layout) -> dict[str, Any]:
    """What a model must have in common with the one a checkpoint was written for: class, blocks, parameter shapes."""
    lines = [f"{name} {tuple(parameter.shape)}" for name, parameter in model.named_parameters()]
    return {
        "model_class": type(model).__name__,
        "blocks": [unit.name for unit in layout.blocks],
        "parameters": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }


def check_state(state: dict[str, Any], plan: GrowthPlan, model: dict[str, Any], has_embedding: bool) -> None:
    """Refuse a state that was written under another version, model, plan or stage-embedding setting.

    Raises:
        StateError: They differ; the message says in what.
    """
    if state.get("version") != STATE_VERSION:
        raise StateError(
            f"the checkpoint's growth state has version {state.get('version')!r}; this library reads {STATE_VERSION}: "
            "resume with the library version that wrote it."
        )
    for key, value in model.items():
        if state["model"].get(key) != value:
            ours, theirs = (
                (value, state["model"].get(key)) if key != "parameters" else ("other shapes", "these shapes")
            )
            raise StateError(f"the checkpoint is of another model: its {key} is {theirs!r}, this model's is {ours!r}.")
    if state["plan"] != plan.to_dict():
        keys = [key for key, value in plan.to_dict().items() if state["plan"].get(key) != value]
        detail = "; ".join(f"{key} was {state['plan'].get(key)}, now {plan.to_dict()[key]}" for key in keys)
        raise StateError(
            f"the checkpoint follows another growth plan ({detail}): resume with the same growth settings and number "
            "of training steps, or pass the old plan."
        )
    if (state["embedding"] is not None) != has_embedding:
        raise StateError(
            f"the checkpoint was written with stage_embedding={state['embedding'] is not None}, this run has "
            f"{has_embedding}: use the same setting."
        )
