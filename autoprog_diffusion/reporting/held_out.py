"""Losses on images that were held out, as `held_out.json` has them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from autoprog_diffusion.growth.values import JSON


HELD_OUT_FILE = "held_out.json"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        step: Optimizer steps done.
        loss: Mean over all held-out images, draws and timesteps.
        noise: Standard error of the difference to the evaluation before it; 0 for the first one.
        by_range: One mean for every range of timesteps; NaN where there is none, as for a loss that is not finite.
        seconds: What the evaluation took.
    """

    step: int
    loss: float
    noise: float
    by_range: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class HeldOut:
    """All evaluations of a run.

    Attributes:
        evaluations: By step.
        ranges: Bounds of the ranges of timesteps, as shares of them, least noise first.
        best: Optimizer steps and loss of the best evaluation; None without one.
        stopped: What the rule that stopped the run noted; None where it ran to its end.
        images: Number of held-out images.
        draws: Draws of noise for each.
    """

    evaluations: tuple[Evaluation, ...]
    ranges: tuple[tuple[float, float], ...]
    best: tuple[int, float] | None
    stopped: JSON | None
    images: int
    draws: int

    @classmethod
    def read(cls, values: JSON) -> HeldOut:
        """The content of the file.

        Raises:
            KeyError, TypeError or ValueError: It is damaged.
        """
        ranges = tuple((float(low), float(high)) for low, high in values["ranges"])
        evaluations = tuple(_evaluation(entry, len(ranges)) for entry in values["evaluations"])
        best = values["best"]
        stopped = values["stopped"]
        return cls(
            evaluations=tuple(sorted(evaluations, key=lambda entry: entry.step)),
            ranges=ranges,
            best=None if best is None else (int(best["step"]), float(best["loss"])),
            stopped=None if stopped is None else dict(stopped),
            images=int(values["images"]),
            draws=int(values["draws"]),
        )


def _evaluation(entry: dict[str, Any], ranges: int) -> Evaluation:
    by_range = tuple(_known(value) for value in entry["by_range"])
    if len(by_range) != ranges:
        raise ValueError(f"the evaluation at step {entry['step']} has {len(by_range)} losses for {ranges} ranges")
    return Evaluation(
        step=int(entry["step"]),
        loss=_known(entry["loss"]),
        noise=_known(entry["noise"]),
        by_range=by_range,
        seconds=float(entry["seconds"]),
    )


def _known(value: float | None) -> float:
    """A number; JSON has none that is infinite or no number, and null in its place."""
    return math.nan if value is None else float(value)
