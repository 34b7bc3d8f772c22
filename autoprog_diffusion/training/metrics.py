"""What a run remembers of itself: one row per optimizer step, saved in its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any


COLUMNS = ("loss", "seconds", "stage", "resolution", "trainable", "memory")


@dataclass(frozen=True)
class StageSummary:
    """One row of the table at the end of a run.

    Attributes:
        stage: Index of the stage.
        steps: Optimizer steps in it.
        blocks: Number of blocks that trained.
        trainable: Share of the parameters that trained, in [0, 1].
        resolution: Side of the images in pixels.
        step_seconds: Median time of an optimizer step.
        flops: Of one forward and backward pass on one process, forward plus backward; None where not counted.
        memory: Peak bytes: allocated on the GPU, else resident.
        loss: Mean loss of the last quarter of the stage.
    """

    stage: int
    steps: int
    blocks: int
    trainable: float
    resolution: int
    step_seconds: float
    flops: int | None
    memory: int
    loss: float


class RunLog:
    """Rows of the training so far; registered for checkpointing, so that a resumed run reports all of it."""

    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = {name: [] for name in COLUMNS}
        self.flops: dict[int, int] = {}

    def add(self, **row: float) -> None:
        """Append the row of one optimizer step: a value for each of `COLUMNS`."""
        for name in COLUMNS:
            self.rows[name].append(float(row[name]))

    def __len__(self) -> int:
        return len(self.rows["loss"])

    def summaries(self, blocks: list[int]) -> list[StageSummary]:
        """One summary per stage that has run; `blocks` is the number of trained blocks of every stage."""
        return [self._summary(int(stage), blocks) for stage in sorted(set(self.rows["stage"]))]

    def _summary(self, stage: int, blocks: list[int]) -> StageSummary:
        index = [i for i, value in enumerate(self.rows["stage"]) if value == stage]
        column = {name: [self.rows[name][i] for i in index] for name in COLUMNS}
        tail = column["loss"][-max(1, len(index) // 4) :]
        return StageSummary(
            stage=stage,
            steps=len(index),
            blocks=blocks[stage],
            trainable=column["trainable"][0],
            resolution=int(column["resolution"][0]),
            step_seconds=median(column["seconds"]),
            flops=self.flops.get(stage),
            memory=int(max(column["memory"])),
            loss=sum(tail) / len(tail),
        )

    def state_dict(self) -> dict[str, Any]:
        """All rows, as plain lists."""
        return {"rows": self.rows, "flops": self.flops}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to the rows of a checkpoint."""
        self.rows, self.flops = state_dict["rows"], state_dict["flops"]


def fullest(summaries: list[StageSummary]) -> StageSummary:
    """The stage that trained most, the last one of several: what full training costs."""
    return max(reversed(summaries), key=lambda row: (row.resolution, row.trainable))


def saving(summaries: list[StageSummary]) -> dict[str, float]:
    """What growth saved against as many steps at the cost of the stage that trained most.

    Returns:
        `time`: full over actual training time; `flops`: the same for FLOPs, where all stages were counted.
    """
    steps, full = sum(s.steps for s in summaries), fullest(summaries)
    result = {"time": full.step_seconds * steps / sum(s.step_seconds * s.steps for s in summaries)}
    if all(s.flops for s in summaries):
        result["flops"] = (full.flops or 0) * steps / sum((s.flops or 0) * s.steps for s in summaries)
    return result
