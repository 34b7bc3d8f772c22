"""What a checkpoint of a `ViTGrowth` holds, and the refusal of one that belongs elsewhere."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from autoprog_diffusion.growth.errors import StateError

from .config import ViTGrowthConfig


STATE_VERSION = 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShapeRecord:
    """What happened when a sub-network shape was entered.

    Attributes:
        stage: Index of the stage.
        step: Optimizer step (counted from 0) it was entered at.
        searching: Whether it is a supernet; depth and resolution are then its largest.
        depth: Blocks that run.
        resolution: Image side in pixels.
        trainable_parameters: Parameters that train.
        trainable_fraction: The same over all of the model's parameters.
        stride: Pixels from one token to the next; None where tokens do not grow.
    """

    stage: int
    step: int
    searching: bool
    depth: int
    resolution: int
    trainable_parameters: int
    trainable_fraction: float
    stride: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record as plain JSON types."""
        return asdict(self)


def check_state(
    state: dict[str, Any], model: dict[str, Any], config: ViTGrowthConfig, num_training_steps: int
) -> None:
    """Refuse a state of another version, model, preset or length of run.

    Raises:
        StateError: They differ; the message says in what.
    """
    if state.get("version") != STATE_VERSION:
        raise StateError(
            f"the checkpoint's growth state has version {state.get('version')!r}; this library reads {STATE_VERSION}: "
            "resume with the library version that wrote it."
        )
    for key, value in model.items():
        theirs = state["model"].get(key)
        if theirs != value:
            detail = "its parameters have other shapes" if key == "parameters" else f"{key} {theirs!r}, not {value!r}"
            raise StateError(f"the checkpoint is of another model: {detail}. Build the model of the checkpoint.")
    ours = {**config.to_dict(), "num_training_steps": num_training_steps}
    theirs = {**state.get("config", {}), "num_training_steps": state["plan"]["num_training_steps"]}
    wrong = [
        f"{key} was {theirs.get(key)!r}, now {value!r}" for key, value in ours.items() if theirs.get(key) != value
    ]
    if wrong:
        raise StateError(
            f"the checkpoint was written under other growth settings ({'; '.join(wrong)}): resume with its preset."
        )
