"""What ordinary training costs to an accuracy: the yardstick of every benchmark that pretrains vision transformers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any


Row = dict[str, Any]


def ordinary_cost(accuracy: float, key: str, *, whole: Mapping[str, Any], short: Mapping[str, Any]) -> float:
    """What ordinary training costs to the same accuracy, relative to its long run.

    Log-linear in the cost through its two fully decayed lengths; what lies outside of them is extrapolated. Not the
    first crossing of a curve: that would credit noise, and models that are not yet whole.

    Args:
        accuracy: In percent.
        key: A cost.
        whole: The long run: `accuracy` in percent, and under `key` a speed-up.
        short: The short run, likewise.
    """
    slope = (whole["accuracy"] - short["accuracy"]) / math.log(short[key] / whole[key])
    return math.exp((accuracy - whole["accuracy"]) / slope)


def note_equal_accuracy(rows: Iterable[Row], keys: Iterable[str], *, whole: Row | None, short: Row | None) -> None:
    """Add to every row, under `equal_accuracy_<key>`, what ordinary training costs to its accuracy over its own cost.

    Args:
        rows: As `ordinary_cost` takes them, with speed-ups against one run.
        keys: Costs.
        whole: The long run of ordinary training; nothing is added without it.
        short: The short one, likewise.
    """
    if whole is None or short is None:
        return
    for row in rows:
        for key in keys:
            cost = ordinary_cost(row["accuracy"], key, whole=whole, short=short)
            row[f"equal_accuracy_{key}"] = row[key] / whole[key] * cost
