"""Predictions of the time of a run: kept for its summary, and told beside what the run took."""

from __future__ import annotations

import json
from pathlib import Path

from .metrics import Metrics


OURS = "the first three steps of the run, and the FLOPs of every stage"


def note_prediction(metrics: Metrics, left: float | None) -> bool:
    """Keep what was predicted when a stage had its third step, for the summary; returns whether that was now.

    Args:
        metrics: Of the steps done.
        left: Seconds that were predicted for the rest.
    """
    stages = metrics.rows["stage"]
    if left is None or sum(stage == stages[-1] for stage in stages[-4:]) != 3:
        return False
    metrics.predictions.append({"step": float(len(stages)), "seconds": left})
    return True


def is_ours(file: Path) -> bool:
    """Whether a file of predictions is not there, or was written by a run."""
    if not file.exists():
        return True
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("source") == OURS
    except (ValueError, AttributeError):
        return False


def prediction_sentence(metrics: Metrics) -> str | None:
    """How far the time left was from what the rest of the run took, from the second stage on; None without one."""
    seconds = metrics.rows["seconds"]
    errors = []
    for each in metrics.predictions[1:]:
        step = int(each["step"])
        took = sum(seconds[step:])
        if took > 0:
            ratio = each["seconds"] / took
            errors.append(abs(ratio - 1))
    if not errors:
        return None
    return f"the time left was told within {max(errors):.0%} of what the rest took, from the second stage on."
