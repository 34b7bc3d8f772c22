"""The runs of a seed set against its ordinary runs, and means over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean
from typing import Any

from accuracy_cost import note_equal_accuracy
from methods import METHODS
from step_times import cpu_seconds


def against_ordinary(runs: Mapping[str, dict[str, Any]], times: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """The runs of one seed, by method, as rows of the table."""
    full = costs(runs["full"], times)
    rows: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        if method not in runs:
            continue
        own = costs(runs[method], times)
        rows[method] = {
            "method": method,
            "words": METHODS[method].words,
            "rate": METHODS[method].rate,
            "steps": runs[method]["steps"],
            "accuracy": 100 * runs[method]["accuracy"],
            "cpu_minutes": own["cpu_seconds"] / 60,
            **{key: full[key] / own[key] for key in full},
        }
    for ordinary in {METHODS[method].ordinary: None for method in rows}:
        mates = [row for method, row in rows.items() if METHODS[method].ordinary == ordinary]
        note_equal_accuracy(mates, full, whole=rows.get(ordinary), short=rows.get(f"{ordinary}_short"))
        for row in mates:
            for key in full:
                row[f"stopped_{key}"] = over_stopped(row, runs.get(ordinary), key)
    return rows


def over_stopped(row: Mapping[str, Any], ordinary: Mapping[str, Any] | None, key: str) -> float | None:
    """What an ordinary run had cost when it was as accurate, over a row's cost; None without one that ever was."""
    if ordinary is None:
        return None
    reached = cost_of(row["accuracy"], ordinary["curve"], key)
    return None if reached is None else row[key] * reached / ordinary[key]


def means(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table from those of a method's seeds; a comparison that one of them lacks is missing."""
    merged = {**rows[0], "seeds": len(rows)}
    for key in rows[0]:
        values = [row.get(key) for row in rows]  # an ordinary run of a seed may be missing
        if None in values:
            merged[key] = None
        elif isinstance(values[0], float):
            merged[key] = mean(values)
    for comparison in ("equal_accuracy", "stopped"):
        for cost in ("cpu_seconds", "flops"):
            key = f"{comparison}_{cost}"
            merged[f"{key}_text"] = "-" if merged.get(key) is None else f"{merged[key]:.2f}x"
    return merged


def costs(run: Mapping[str, Any], times: Mapping[str, float]) -> dict[str, float]:
    """What a run costs."""
    return {"cpu_seconds": cpu_seconds(run, METHODS[run["method"]].strides, times), "flops": run["flops"]}


def cost_of(accuracy: float, curve: Sequence[Mapping[str, float]], key: str) -> float | None:
    """What ordinary training had cost when its averaged weights first were so accurate; None if they never were.

    Args:
        accuracy: In percent.
        curve: Its evaluations, between which costs are interpolated.
        key: A cost.
    """
    for before, after in pairwise(curve):
        low, high = 100 * before["ema_accuracy"], 100 * after["ema_accuracy"]
        if low < accuracy <= high:
            return before[key] + (accuracy - low) / (high - low) * (after[key] - before[key])
    return None
