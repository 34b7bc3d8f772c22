"""The quality that a way to train loses, by this project's measurements; None is "not measured"."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

from .settings import Plan


TABLE = Path(__file__).with_name("quality.json")
AVERAGED = "freeze from"  # begins the names of stages that were measured with an average of the weights
EXACT = {"frozen_dtype": "bfloat16", "optimizer": "adamw", "trained_dtype": "float32"}


@dataclass(frozen=True)
class Quality:
    """The loss of a way to train above that of full fine-tuning.

    Attributes:
        lowest: Percent, of the case where it is lowest; None where it was not measured.
        highest: Percent, of the case where it is highest.
        unmeasured: Choices whose effect was not measured.
    """

    lowest: float | None
    highest: float | None
    unmeasured: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[int, float, int]:
        """Sorts ways to train: measured ones first, by their loss, then by how many choices were not measured.

        What is a tenth of a percent apart, or better than full fine-tuning, is so by chance.
        """
        missing = self.lowest is None or self.highest is None
        middle = 0.0 if missing else (self.lowest + self.highest) / 2  # type: ignore[operator]
        return (int(missing), max(0.0, round(middle, 1)), len(self.unmeasured))

    def __str__(self) -> str:
        if self.lowest is None or self.highest is None:
            return "not measured"
        lowest, highest = (round(each, 1) + 0.0 for each in (self.lowest, self.highest))
        text = f"{lowest:+.1f} to {highest:+.1f} % loss"
        if lowest == highest:
            text = f"{lowest:+.1f} % loss" if lowest else "none"
        return f"{text}; not measured: {', '.join(self.unmeasured)}" if self.unmeasured else text


# Shares of the steps of full fine-tuning that were measured.
SHORTER = {1.0: "full", 0.5: "half the steps", 0.25: "a quarter of the steps"}


def shorter_quality(share: float) -> Quality:
    """What full fine-tuning for fewer steps loses, between the measured lengths in proportion to the halvings.

    Args:
        share: Of the steps.
    """
    if share >= 1:
        return Quality(0.0, 0.0)
    if share < min(SHORTER):
        return Quality(None, None)
    long = min(length for length in SHORTER if length > share)
    short = max(length for length in SHORTER if length <= share)
    weight = math.log2(long / share) / math.log2(long / short)
    before = measured("trained", SHORTER[long]) or []
    after = measured("trained", SHORTER[short]) or []
    losses = []
    for high, low in zip(before, after):
        losses.append((1 - weight) * high + weight * low)
    return Quality(
        min(losses),
        max(losses),
    )


@cache
def _rows() -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """Choice and name -> what was measured."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    return {(row["choice"], row["name"]): row for row in table["rows"]}


def measured(choice: str, name: str, column: str = "loss_percent") -> list[float] | None:
    """What was measured of a choice, a number for each case; None if nothing was."""
    values = _rows().get((choice, name), {}).get(column)
    return None if values is None else list(values.values())


def quality_of(plan: Plan, trained: str) -> Quality:
    """What a plan loses.

    Args:
        plan: The plan.
        trained: Name of what trains in the table: full, freeze, `window N`, LoRA.
    """
    choices = {
        "frozen_dtype": plan.growth.get("frozen_dtype"),
        "optimizer": plan.optimizer,
        "trained_dtype": plan.trained_dtype,
        "step_in_backward": "on" if plan.step_in_backward else None,
    }
    total = measured("trained", trained)
    unmeasured = []
    for choice, name in choices.items():
        if name is None or name == EXACT.get(choice):
            continue
        values = measured(choice, str(name))
        if values is None:
            unmeasured.append(f"{choice} {name}")
        elif total is not None:
            total = [value + fmean(values) for value in total]
    if total is None:
        return Quality(None, None, (trained, *unmeasured))
    return Quality(min(total), max(total), tuple(unmeasured))
