"""What a pretraining run remembers of itself: one row per optimizer step, saved in its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any


COLUMNS = ("loss", "seconds", "cpu_seconds", "stage", "searching", "depth", "resolution", "flops", "memory")


@dataclass(frozen=True)
class StageSummary:
    """One row of the table at the end of a run: a stage, or the search at its start.

    Attributes:
        stage: Index of the stage.
        searching: Whether a supernet trained; depth, resolution and FLOPs are then means over its sub-networks.
        steps: Optimizer steps.
        depth: Blocks that ran.
        resolution: Side of the images in pixels.
        step_seconds: Median wall time of an optimizer step.
        seconds: Wall time of all steps and evaluations of candidates.
        cpu_seconds: CPU time of this process for the same.
        flops: Of an optimizer step on one process, mean.
        memory: Peak bytes: allocated on the GPU, else resident.
        loss: Mean training loss of the last quarter.
    """

    stage: int
    searching: bool
    steps: int
    depth: float
    resolution: float
    step_seconds: float
    seconds: float
    cpu_seconds: float
    flops: float
    memory: int
    loss: float


class RunLog:
    """Rows of the training so far; registered for checkpointing, so that a resumed run reports all of it.

    Attributes:
        rows: Column name -> a value per optimizer step.
        validations: Results of every validation, each with its step.
        flops: `depth x resolution` -> FLOPs of a forward and backward pass on one batch.
    """

    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = {name: [] for name in COLUMNS}
        self.validations: list[dict[str, float]] = []
        self.flops: dict[str, int] = {}

    def add(self, **row: float) -> None:
        """Append the row of one optimizer step: a value for each of `COLUMNS`."""
        for name in COLUMNS:
            self.rows[name].append(float(row[name]))

    def __len__(self) -> int:
        return len(self.rows["loss"])

    def summaries(self) -> list[StageSummary]:
        """One summary per stage and search that has run, in order."""
        keys = list(zip(self.rows["stage"], self.rows["searching"]))
        return [self._summary(key, [i for i, k in enumerate(keys) if k == key]) for key in dict.fromkeys(keys)]

    def total(self, column: str) -> float:
        """Sum of a column over all steps."""
        return sum(self.rows[column])

    def _summary(self, key: tuple[float, float], index: list[int]) -> StageSummary:
        column = {name: [self.rows[name][i] for i in index] for name in COLUMNS}
        mean = {name: sum(values) / len(index) for name, values in column.items()}
        tail = column["loss"][-max(1, len(index) // 4) :]
        return StageSummary(
            stage=int(key[0]),
            searching=bool(key[1]),
            steps=len(index),
            depth=mean["depth"],
            resolution=mean["resolution"],
            step_seconds=median(column["seconds"]),
            seconds=sum(column["seconds"]),
            cpu_seconds=sum(column["cpu_seconds"]),
            flops=mean["flops"],
            memory=int(max(column["memory"])),
            loss=sum(tail) / len(tail),
        )

    def state_dict(self) -> dict[str, Any]:
        """All rows, as plain lists."""
        return {"rows": self.rows, "validations": self.validations, "flops": self.flops}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to the rows of a checkpoint."""
        self.rows, self.validations = state_dict["rows"], state_dict["validations"]
        self.flops = state_dict["flops"]


def fullest(summaries: list[StageSummary]) -> StageSummary:
    """The stage that trained most, the last one of several: what full training costs."""
    return max(reversed(summaries), key=lambda row: (not row.searching, row.resolution, row.depth))


def saving(summaries: list[StageSummary]) -> dict[str, float]:
    """What growth saved against training the whole model at full resolution for as many steps.

    Returns:
        `time`: full over actual wall time, evaluations of candidates included; `flops`: the same for training FLOPs.
    """
    steps, full = sum(row.steps for row in summaries), fullest(summaries)
    return {
        "time": full.step_seconds * steps / sum(row.seconds for row in summaries),
        "flops": full.flops * steps / sum(row.flops * row.steps for row in summaries),
    }
