"""What ordinary training costs to an accuracy: the yardstick of every benchmark that pretrains vision transformers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def ordinary_cost(accuracy: float, rows: dict[str, dict[str, Any]], key: str) -> float:
    """What ordinary training costs to the same accuracy, relative to `full`.

    Log-linear in the cost through its two fully decayed lengths, `full_short` and `full`; what lies outside of them is
    extrapolated. Not the first crossing of a curve: that would credit noise, and models that are not yet whole.

    Args:
        accuracy: In percent.
        rows: Of `full` and `full_short`: `accuracy` in percent, and under `key` the cost of `full` over the row's.
        key: A cost.
    """
    short = rows["full_short"]
    whole = rows["full"]
    slope = (whole["accuracy"] - short["accuracy"]) / math.log(short[key])
    return math.exp((accuracy - whole["accuracy"]) / slope)


def note_equal_accuracy(rows: dict[str, dict[str, Any]], keys: Iterable[str]) -> None:
    """Add to every row, under `equal_accuracy_<key>`, what ordinary training costs to its accuracy over its own cost.

    Args:
        rows: By method, as `ordinary_cost` takes them; nothing is added without `full_short`.
        keys: Costs.
    """
    if "full_short" not in rows:
        return
    for row in rows.values():
        for key in keys:
            row[f"equal_accuracy_{key}"] = row[key] * ordinary_cost(row["accuracy"], rows, key)
