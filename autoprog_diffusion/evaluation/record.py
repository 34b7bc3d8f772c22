"""The evaluations of a run: kept in its checkpoints, and in `held_out.json` for people and programs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from autoprog_diffusion.files import write_text_atomically

from .result import Evaluation, difference
from .stopping import Point


FILE = "held_out.json"


@dataclass
class EvaluationRecord:
    """All evaluations of a run, by step.

    Attributes:
        points: Of them, with all losses.
        stopped: How the run stopped early, as plain values; None if it did not.
        pace: Size and interval of the evaluations, as plain values.
        widths: Relative width of an average -> its loss at the end; none where there was no choice.
    """

    points: list[Point] = field(default_factory=list)
    stopped: dict[str, Any] | None = None
    pace: dict[str, Any] = field(default_factory=dict)
    widths: dict[float, float] = field(default_factory=dict)

    @property
    def best(self) -> Point | None:
        """The evaluation with the lowest loss, the earlier one of two; none before the first step counts."""
        trained = [point for point in self.points if point.step > 0 and math.isfinite(point.evaluation.loss)]
        return min(trained, key=lambda point: point.evaluation.loss, default=None)

    def has(self, step: int) -> bool:
        """Whether there was an evaluation after so many steps."""
        return any(point.step == step for point in self.points)

    def noise(self, index: int) -> float:
        """Standard error of the difference of an evaluation to the one before it; 0 for the first one."""
        if index == 0:
            return 0.0
        return difference(self.points[index].evaluation, self.points[index - 1].evaluation).noise

    def to_dict(self) -> dict[str, Any]:
        """What `held_out.json` holds."""
        rows = []
        for index, point in enumerate(self.points):
            rows.append(
                {
                    "step": point.step,
                    "loss": number(point.evaluation.loss),
                    "noise": number(self.noise(index)),
                    "by_range": [number(value) for value in point.evaluation.by_range],
                    "seconds": point.evaluation.seconds,
                }
            )
        best = self.best
        known = self.points[-1].evaluation if self.points else None
        return {
            "evaluations": rows,
            "ranges": [] if known is None else known.bounds,
            "best": None if best is None else {"step": best.step, "loss": best.evaluation.loss},
            "stopped": self.stopped,
            "widths": [{"width": width, "loss": number(loss)} for width, loss in self.widths.items()],
            "images": 0 if known is None else known.losses.shape[1],
            "draws": 0 if known is None else known.losses.shape[0],
        }

    def write(self, folder: Path) -> None:
        """Write `held_out.json`, as a whole."""
        write_text_atomically(folder / FILE, json.dumps(self.to_dict(), indent=2) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """As plain values and tensors."""
        points = []
        for point in self.points:
            points.append({"step": point.step, **vars(point.evaluation)})
        return {"points": points, "stopped": self.stopped, "pace": self.pace, "widths": self.widths}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to the evaluations of a checkpoint."""
        self.points = []
        for values in state_dict["points"]:
            evaluation = Evaluation(
                losses=values["losses"].to("cpu", torch.float64),
                times=values["times"].to("cpu", torch.float64),
                ranges=values["ranges"],
                seconds=values["seconds"],
            )
            self.points.append(Point(values["step"], evaluation))
        self.stopped = state_dict["stopped"]
        self.pace = state_dict["pace"]
        self.widths = state_dict.get("widths", {})


def number(value: float) -> float | None:
    """A number for JSON, which has none that is infinite or no number."""
    return value if math.isfinite(value) else None
