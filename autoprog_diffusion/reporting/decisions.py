"""Candidates of every decision of a search, their scores, and which was chosen."""

from __future__ import annotations

import math
from typing import Any

from autoprog_diffusion.growth.values import JSON

from .markup import Child, Html, element, table
from .run_folder import Run
from .words import DASH, duration, short


# Numbers that searches give their candidates; as `training.decision_table.SCORES`.
SCORES = ("loss", "cost", "kappa", "zico", "gain", "score", "value")


def decisions_section(run: Run) -> Html | None:
    """The candidates of every decision; None where no search made any."""
    if not run.decisions:
        return None
    tables = [_decision(decision) for decision in run.decisions]
    return element("div", tables)


def _decision(decision: JSON) -> Html:
    listed = decision.get("candidates")
    found = listed if isinstance(listed, list) else []
    candidates = [row for row in found if isinstance(row, dict)]
    scores = [name for name in SCORES if any(name in row for row in candidates)]
    candidates.sort(key=_order)
    rows = []
    for row in candidates:
        chosen = is_chosen(decision, row)
        rows.append(_row(row, scores, chosen=chosen))
    head = ["Candidate", "Blocks", "Size", *scores, ""]
    return table(head, rows, caption=_title(decision))


def _title(decision: JSON) -> str:
    """Stage, method and time of a decision."""
    stage = decision.get("stage")
    number = stage + 1 if isinstance(stage, int) else stage
    words = [str(decision.get("objective") or decision.get("search") or "search")]
    seconds = decision.get("seconds")
    if isinstance(seconds, int | float):
        words.append(duration(seconds))
    return f"Search for stage {number} ({', '.join(words)})"


def _row(candidate: JSON, scores: list[str], *, chosen: bool) -> list[Child]:
    """The cells of one candidate; that of the choice is set in bold."""
    depth = str(_depth(candidate))
    size = str(candidate.get("resolution", DASH))
    name = str(candidate.get("name") or f"{depth} blocks at {size} px")
    cells: list[Child] = [element("strong", name) if chosen else name, depth, size]
    for score in scores:
        cells.append(_score(candidate.get(score)))
    cells.append("chosen" if chosen else "")
    return cells


def _order(candidate: JSON) -> float:
    """The lowest sum of scores comes first; where a search does not add them up, the order is its own."""
    value = candidate.get("value", 0)
    known = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if known else 0.0


def _score(value: Any) -> str:
    if value is None:
        return DASH
    if isinstance(value, int | float):
        return short(value, digits=4)
    return str(value)  # JSON has infinite numbers as words


def is_chosen(decision: JSON, candidate: JSON) -> bool:
    """Whether a search decided for this candidate: the choice is its name, or its depth and resolution."""
    choice = decision.get("choice")
    if isinstance(choice, dict):
        own = {"depth": _depth(candidate), "resolution": candidate.get("resolution")}
        return choice == own
    return choice == candidate.get("name")


def _depth(candidate: JSON) -> Any:
    """Number of blocks that a candidate trains."""
    if "depth" in candidate:
        return candidate["depth"]
    blocks = candidate.get("blocks")
    return len(blocks) if isinstance(blocks, list) else DASH
