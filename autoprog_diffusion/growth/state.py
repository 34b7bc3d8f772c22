"""The state of a `GrowthScheduler` in a checkpoint, and the refusal of one that belongs elsewhere."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from .errors import StateError
from .memory import StageMemory
from .plan import GrowthPlan
from .units import Layout, count_trainable
from .values import JSON, Resolution


STATE_VERSION = 1
STATE_KEYS = {"step", "plan", "model", "history", "decisions"}
State = dict[str, Any]  # what `GrowthScheduler.state_dict` returns
NamedTensors = dict[str, Tensor]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageRecord:
    """A stage that was entered.

    Attributes:
        stage: Index of the stage.
        step: Optimizer step (counted from 0) it was entered at.
        blocks: Names of the blocks that train.
        trainable_parameters: Number of the model's parameters that train.
        trainable_fraction: Their share of the model's parameters.
        resolution: Fraction of the data's size (float) or pixels (int).
        recomputed: Names of the blocks that are computed again in the backward pass, after the first step of the
            stage; None without `checkpointing`.
        memory: Predicted bytes of a step, under `checkpointing="auto"` (see `growth.memory.StageMemory`).
    """

    stage: int
    step: int
    blocks: tuple[str, ...]
    trainable_parameters: int
    trainable_fraction: float
    resolution: Resolution
    recomputed: tuple[str, ...] | None = None
    memory: JSON | None = None

    def to_dict(self) -> JSON:
        """The record as plain JSON types."""
        recomputed = None if self.recomputed is None else list(self.recomputed)
        return {**asdict(self), "blocks": list(self.blocks), "recomputed": recomputed}

    @classmethod
    def from_dict(cls, values: JSON) -> StageRecord:
        """The record that `to_dict` wrote."""
        recomputed = values.get("recomputed")
        names = None if recomputed is None else tuple(recomputed)
        return cls(**{**values, "blocks": tuple(values["blocks"]), "recomputed": names})


def record_stage(model: nn.Module, layout: Layout, plan: GrowthPlan, step: int) -> StageRecord:
    """Log and return the record of the stage that `model` has just entered.

    Args:
        model: The bare model.
        layout: Its units.
        plan: The plan that is followed.
        step: Number of optimizer steps done.
    """
    stage = plan.stage_at(step)
    entry = plan.stages[stage]
    trainable, total = count_trainable(model)
    record = StageRecord(
        stage=stage,
        step=step,
        blocks=tuple(layout.blocks[index].name for index in entry.blocks),
        trainable_parameters=trainable,
        trainable_fraction=trainable / total,
        resolution=entry.resolution,
    )
    logger.info(
        f"stage {stage + 1} of {len(plan.stages)} at step {step}: {len(entry.blocks)} of {plan.num_blocks} blocks, "
        f"{100 * trainable / total:.1f} % of the parameters, resolution {entry.resolution}"
    )
    return record


def note_memory(record: StageRecord, memory: StageMemory) -> StageRecord:
    """The record of a stage with what is computed again in it, and with the bytes of a step where they are known."""
    return replace(record, recomputed=memory.recomputed, memory=memory.to_dict() if memory.total else None)


def describe(plan: GrowthPlan, stage: int, trainable: int, total: int) -> str:
    """One line on how much of the model trains, in PEFT's words."""
    entry = plan.stages[stage]
    return (
        f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.4f} || "
        f"stage {stage + 1}/{len(plan.stages)}: {len(entry.blocks)}/{plan.num_blocks} blocks, "
        f"resolution {entry.resolution}"
    )


def fingerprint(model: nn.Module, layout: Layout) -> JSON:
    """Class, blocks and parameter shapes, which a model shares with the one that a checkpoint was written for."""
    lines = [f"{name} {tuple(parameter.shape)}" for name, parameter in model.named_parameters()]
    # `fully_shard` puts a subclass of its own in front of the model's class.
    model_class = next(cls for cls in type(model).__mro__ if not hasattr(cls, "_get_fsdp_state"))
    return {
        "model_class": model_class.__name__,
        "blocks": [unit.name for unit in layout.blocks],
        "parameters": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
    }


def check_state(state: State, model: JSON, *, embedding: NamedTensors | None) -> None:
    """Refuse a state that was written under another version, model or stage-embedding setting.

    Args:
        state: The state of the checkpoint.
        model: This model's `fingerprint`.
        embedding: State of this run's stage embedding.

    Raises:
        StateError: They differ; the message says in what.
    """
    if state.get("version") != STATE_VERSION:
        raise StateError(
            f"the checkpoint's growth state has version {state.get('version')!r}; this library reads {STATE_VERSION}: "
            "resume with the library version that wrote it."
        )
    missing = sorted(STATE_KEYS - state.keys())
    if missing:
        raise StateError(f"the checkpoint's growth state lacks {missing}: it is damaged, resume from another one.")
    for key, value in model.items():
        saved = state["model"].get(key)
        if saved != value:
            if key == "parameters":  # a hash says nothing to a reader
                saved, value = "these shapes", "other shapes"
            raise StateError(f"the checkpoint is of another model: its {key} is {saved!r}, this model's is {value!r}.")
    saved_shapes = _shapes(state.get("embedding"))
    shapes = _shapes(embedding)
    if saved_shapes != shapes:
        raise StateError(
            f"the checkpoint's stage embedding holds {saved_shapes}, this run's {shapes}: use the same "
            "stage_embedding, stage_dropout, num_stages and ema_decay (on or off)."
        )


def _shapes(tensors: NamedTensors | None) -> dict[str, tuple[int, ...]] | None:
    """Name -> shape, for messages."""
    return None if tensors is None else {name: tuple(tensor.shape) for name, tensor in tensors.items()}
