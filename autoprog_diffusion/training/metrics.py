"""Metrics of a run: one row per optimizer step, kept in its checkpoints, and a summary of every stage."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean, median
from typing import Any

from autoprog_diffusion.stage_summary import StageSummary


COLUMNS = (
    "loss", "seconds", "cpu_seconds", "stage", "searching", "blocks", "trainable", "resolution", "flops", "memory"
)  # fmt: skip


class Metrics:
    """Metrics of every optimizer step, registered for checkpointing so that a resumed run reports all of it.

    Attributes:
        rows: Column name -> one value per optimizer step.
        flops: Name of a network -> FLOPs of one optimizer step of it, counted once.
        validations: Results of every validation, each with its step.
        costs: What trains in a stage -> FLOPs of an optimizer step of it, also of stages to come.
        exact: The same, counted for images of the same size, to be taken instead of another count.
        predictions: Seconds left that were told when a stage had begun, each with its step.
    """

    def __init__(self) -> None:
        self.rows: dict[str, list[float]] = {name: [] for name in COLUMNS}
        self.flops: dict[str, int] = {}
        self.validations: list[dict[str, float]] = []
        self.costs: dict[str, float] = {}
        self.exact: dict[str, int] = {}
        self.predictions: list[dict[str, float]] = []

    def add(self, **row: float) -> None:
        """Append the row of one optimizer step: a value for each of `COLUMNS`."""
        for name in COLUMNS:
            self.rows[name].append(float(row[name]))

    def __len__(self) -> int:
        return len(self.rows["loss"])

    def total(self, column: str) -> float:
        """Sum of a column over all steps."""
        return sum(self.rows[column])

    def summaries(self) -> list[StageSummary]:
        """One summary for every stage and search that has run, in order."""
        places: dict[tuple[float, float], list[int]] = defaultdict(list)
        visited = zip(self.rows["stage"], self.rows["searching"])
        for index, place in enumerate(visited):
            places[place].append(index)
        return [self._summary(rows) for rows in places.values()]

    def _summary(self, rows: list[int]) -> StageSummary:
        column = {name: [values[row] for row in rows] for name, values in self.rows.items()}
        last_quarter = column["loss"][-max(1, len(rows) // 4) :]
        _, *warm = column["seconds"]
        return StageSummary(
            stage=int(column["stage"][0]),
            searching=bool(column["searching"][0]),
            steps=len(rows),
            blocks=fmean(column["blocks"]),
            trainable=fmean(column["trainable"]),
            resolution=fmean(column["resolution"]),
            step_seconds=median(warm) if warm else None,
            seconds=sum(column["seconds"]),
            cpu_seconds=sum(column["cpu_seconds"]),
            flops=fmean(column["flops"]),
            memory=int(max(column["memory"])),
            loss=fmean(last_quarter),
        )

    def state_dict(self) -> dict[str, Any]:
        """All metrics, as plain lists."""
        return dict(vars(self))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to the metrics of a checkpoint."""
        vars(self).update(state_dict)


def full_stage(summaries: list[StageSummary], num_blocks: int) -> StageSummary | None:
    """The stage that trained all blocks, the last one of several: the cost of full training; None without one."""
    latest_first = reversed(summaries)
    fullest = max(latest_first, key=lambda row: (not row.searching, row.resolution, row.blocks), default=None)
    return None if fullest is None or fullest.blocks < num_blocks else fullest


def saving(summaries: list[StageSummary], num_blocks: int) -> dict[str, float | None]:
    """Cost of as many steps of full training, divided by the cost of the run.

    Args:
        summaries: Of all stages of the run.
        num_blocks: Number of blocks of the model.

    Returns:
        `time` in wall time, evaluations of candidates included, or None where the full stage has one step only;
        `flops` in FLOPs of training. Both are None where no stage trained all blocks, as with windows.
    """
    full = full_stage(summaries, num_blocks)
    if full is None:
        return {"time": None, "flops": None}
    steps = sum(row.steps for row in summaries)
    seconds = sum(row.seconds for row in summaries)
    flops = sum(row.flops * row.steps for row in summaries)
    time = None if full.step_seconds is None else full.step_seconds * steps / seconds
    return {"time": time, "flops": full.flops * steps / flops}
