"""The stages of a run: what trained in them, what their steps cost, and what had been predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoprog_diffusion.growth.values import JSON
from autoprog_diffusion.stage_summary import StageSummary


@dataclass(frozen=True)
class StageCost(StageSummary):
    """A stage as growth.json has it."""

    @property
    def name(self) -> str:
        """Its name for tables."""
        return f"stage {self.stage + 1}{' search' if self.searching else ''}"

    @classmethod
    def read(cls, row: JSON) -> StageCost:
        """The entry of growth.json; raises `KeyError`, `TypeError` or `ValueError` where it is damaged."""
        step_seconds = row["step_seconds"]
        return cls(
            stage=int(row["stage"]),
            searching=bool(row["searching"]),
            steps=int(row["steps"]),
            blocks=float(row["blocks"]),
            trainable=float(row["trainable"]),
            resolution=float(row["resolution"]),
            step_seconds=None if step_seconds is None else float(step_seconds),
            seconds=float(row["seconds"]),
            cpu_seconds=float(row["cpu_seconds"]),
            flops=float(row["flops"]),
            memory=int(row["memory"]),
            loss=float(row["loss"]),
        )


@dataclass(frozen=True)
class Entered:
    """A stage that was entered.

    Attributes:
        stage: Its index.
        step: Optimizer step (counted from 0) it was entered at.
        blocks: Names of the blocks that train; none where the file has their number only.
        parameters: Number of the model's parameters that train.
        memory: Predicted bytes of a step, under `--checkpointing auto`.
    """

    stage: int
    step: int
    blocks: tuple[str, ...]
    parameters: int
    memory: int | None

    @classmethod
    def read(cls, record: JSON) -> Entered:
        """The entry of growth.json; raises `KeyError`, `TypeError` or `ValueError` where it is damaged."""
        predicted: Any = record.get("memory")
        kinds = ("weights", "gradients", "optimizer", "activations")
        return cls(
            stage=int(record["stage"]),
            step=int(record["step"]),
            blocks=tuple(map(str, record.get("blocks", []))),
            parameters=int(record["trainable_parameters"]),
            memory=None if predicted is None else sum(int(predicted[kind]) for kind in kinds),
        )


@dataclass(frozen=True)
class Planned:
    """What was predicted of a stage: by the run in its first steps, or before it by `autoprog-diffusion plan --json`.

    Attributes:
        blocks: Number of blocks that train.
        step_seconds: Of an optimizer step; None where no speed was known.
        memory: Most bytes of a step; None where it was not predicted.
    """

    blocks: int
    step_seconds: float | None
    memory: int | None

    @classmethod
    def read(cls, row: JSON) -> Planned:
        """The entry of planned.json; raises `KeyError`, `TypeError` or `ValueError` where it is damaged."""
        seconds = row["seconds"]
        peak = row["peak"]
        return cls(
            blocks=int(row["blocks"]),
            step_seconds=None if seconds is None else float(seconds),
            memory=None if peak is None else int(peak),
        )


def full_cost(stages: tuple[StageCost, ...], num_blocks: int) -> StageCost | None:
    """The stage that trained all blocks, at the largest size: what a step of full training costs; None without one."""
    whole = [row for row in stages if not row.searching and row.blocks >= num_blocks]
    return max(
        reversed(whole),
        key=lambda row: row.resolution,
        default=None,
    )
