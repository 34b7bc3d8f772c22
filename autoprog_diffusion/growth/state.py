"""What a checkpoint of a `GrowthScheduler` holds, and the refusal of one that belongs elsewhere."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from .backends.fsdp2 import class_name
from .errors import StateError
from .plan import GrowthPlan
from .units import Layout


STATE_VERSION = 1

logger = logging.getLogger(__name__)


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


def record_stage(plan: GrowthPlan, stage: int, step: int, layout: Layout, trainable: int, total: int) -> StageRecord:
    """The record of entering `stage` after `step` optimizer steps, with `trainable` of `total` parameters; logged."""
    entry = plan.stages[stage]
    names = tuple(layout.blocks[index].name for index in entry.blocks)
    logger.info(
        "stage %d of %d at step %d: %d of %d blocks, %.1f %% of the parameters, resolution %s",
        stage + 1, len(plan.stages), step, len(names), plan.num_blocks, 100 * trainable / total, entry.resolution,
    )  # fmt: skip
    return StageRecord(stage, step, names, trainable, trainable / total, entry.resolution)


def describe(plan: GrowthPlan, stage: int, trainable: int, total: int) -> str:
    """One line on how much of the model trains, in PEFT's words."""
    entry, share = plan.stages[stage], f"{100 * trainable / total:.4f}"
    return (
        f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share} || "
        f"stage {stage + 1}/{len(plan.stages)}: {len(entry.blocks)}/{plan.num_blocks} blocks, "
        f"resolution {entry.resolution}"
    )


def fingerprint(model: nn.Module, layout: Layout) -> dict[str, Any]:
    """What a model must have in common with the one a checkpoint was written for: class, blocks, parameter shapes."""
    lines = [f"{name} {tuple(parameter.shape)}" for name, parameter in model.named_parameters()]
    return {
        "model_class": class_name(model),
        "blocks": [unit.name for unit in layout.blocks],
        "parameters": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }


def check_state(
    state: dict[str, Any],
    plan: GrowthPlan,
    model: dict[str, Any],
    embedding: dict[str, Tensor] | None,
    searched: bool,
) -> None:
    """Refuse a state that was written under another version, model, plan or stage-embedding setting.

    Of a searched plan only the frame must agree (blocks, steps, starts of stages): the rest was decided on the way.

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
    theirs, ours = state["plan"], plan.to_dict()
    if searched:
        theirs, ours = ({**p, "stages": [stage["start"] for stage in p["stages"]]} for p in (theirs, ours))
    if theirs != ours:
        keys = [key for key, value in ours.items() if theirs.get(key) != value]
        detail = "; ".join(f"{key} was {theirs.get(key)}, now {ours[key]}" for key in keys)
        raise StateError(
            f"the checkpoint follows another growth plan ({detail}): resume with the same growth settings and number "
            "of training steps, or pass the old plan."
        )
    theirs, ours = (
        None if e is None else {k: tuple(v.shape) for k, v in e.items()} for e in (state.get("embedding"), embedding)
    )
    if theirs != ours:
        raise StateError(
            f"the checkpoint's stage embedding holds {theirs}, this run's {ours}: use the same stage_embedding, "
            "stage_dropout, num_stages and ema_decay (on or off)."
        )
