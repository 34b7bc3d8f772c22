"""How good a run was over its time: held-out loss, accuracy, or the training loss where nothing else was measured."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from .run_folder import Run
from .scales import smooth, thinned


@dataclass(frozen=True)
class Measure:
    """One way of judging runs.

    Attributes:
        name: As a title has it.
        lower: Whether less is better.
        fair: Whether it judges runs that train different parts of a model alike.
    """

    name: str
    lower: bool
    fair: bool


HELD_OUT = Measure(
    "Held-out loss",
    lower=True,
    fair=True,
)
ACCURACY = Measure(
    "Validation accuracy",
    lower=False,
    fair=True,
)
TRAINING = Measure(
    "Training loss, smoothed",
    lower=True,
    fair=False,
)


def measured(run: Run, measure: Measure) -> list[tuple[int, float]]:
    """Step and value of every measurement of a run; none where it has none."""
    if measure is HELD_OUT:
        held_out = run.held_out
        return [] if held_out is None else [(entry.step, entry.loss) for entry in held_out.evaluations]
    if measure is ACCURACY:
        return [(int(row["step"]), _accuracy(row)) for row in run.validations if "accuracy" in row]
    losses = run.rows.get("loss", [])
    points = thinned(smooth(losses, smoothing(losses)), most=200)
    return [(round(step), value) for step, value in points]


def common_measure(runs: Sequence[Run]) -> Measure:
    """The best measure that all runs have; the training loss where there is none."""
    for measure in (HELD_OUT, ACCURACY):
        if all(measured(run, measure) for run in runs):
            return measure
    return TRAINING


def best(points: Sequence[tuple[int, float]], measure: Measure) -> tuple[int, float] | None:
    """Step and value of the best measurement."""
    known = [point for point in points if math.isfinite(point[1])]
    if not known:
        return None
    choose = min if measure.lower else max
    return choose(known, key=lambda point: point[1])


def costs(run: Run, column: str) -> list[float]:
    """Seconds that the first 0, 1, 2, ... steps took: wall time of `seconds`, CPU time of `cpu_seconds`.

    Evaluations of a run's own are not part of them, so that a run is not judged by how often it was measured.
    """
    return [0.0, *accumulate(run.rows.get(column, []))]


def against(run: Run, measure: Measure, column: str) -> list[tuple[float, float]]:
    """Cost and value of every measurement of a run, those beyond its measured steps left out."""
    spent = costs(run, column)
    return [(spent[step], value) for step, value in measured(run, measure) if step < len(spent)]


def time_to(run: Run, measure: Measure, value: float) -> float | None:
    """Wall time until a run was first as good as a value; None where it never was."""
    for seconds, reached in against(run, measure, "seconds"):
        if reached <= value if measure.lower else reached >= value:
            return seconds
    return None


def stage_at(run: Run, step: int) -> int | None:
    """Index of the stage that trained the step that ended with `step` steps done."""
    if run.plan is None:
        return None
    starts = [stage.start for stage in run.plan.stages]
    return max(0, bisect_right(starts, max(0, step - 1)) - 1)


def smoothing(losses: Sequence[float]) -> float:
    """Weight of the past in a moving average that follows a run of this length."""
    return max(0.0, min(0.98, 1 - 25 / max(1, len(losses))))


def last_quarter(losses: Sequence[float]) -> float:
    """Mean of the last quarter of a run."""
    known = losses[-max(1, len(losses) // 4) :]
    return math.fsum(known) / len(known)


def _accuracy(row: dict[str, float]) -> float:
    """Accuracy of the averaged weights, where they were evaluated."""
    return row.get("ema_accuracy", row["accuracy"])
