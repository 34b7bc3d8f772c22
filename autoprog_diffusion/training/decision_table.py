"""The table of one search: its best candidates, their scores, and which was chosen."""

from __future__ import annotations

from typing import Any

from .console_table import print_table


# Numbers that searches give their candidates: what a candidate costs, its scores, and their sum, lowest first.
SCORES = ("loss", "cost", "kappa", "zico", "gain", "score", "value")
MOST_CANDIDATES = 6


def print_decision(decision: dict[str, Any]) -> None:
    """Print the best candidates of one search: their scores, their cost, and which was chosen."""
    # Where a search does not add up its scores, the order is its own.
    candidates = sorted(decision["candidates"], key=lambda candidate: float(candidate.get("value", 0)))
    costs = [scores(candidate).get("cost", 0) for candidate in candidates]
    most_expensive = max(costs) or 1
    rows = []
    for candidate in candidates[:MOST_CANDIDATES]:
        row = _row(candidate, most_expensive)
        row[""] = "chosen" if is_chosen(decision, candidate) else ""
        rows.append(row)
    more = len(candidates) - len(rows)
    caption = f"{more} more in growth.json" if more else None
    print_table(_title(decision), rows, caption=caption)


def _row(candidate: dict[str, Any], most_expensive: float) -> dict[str, str]:
    """The cells of a candidate, its cost in percent of the most expensive one's."""
    row = {
        "candidate": candidate.get("name", ""),
        "blocks": str(depth_of(candidate)),
        "pixels": str(candidate.get("resolution", "")),
    }
    for name, score in scores(candidate).items():
        if name == "cost":
            row[name] = f"{score / most_expensive:.0%}"
        else:
            row[name] = f"{score:.4g}"
    return row


def _title(decision: dict[str, Any]) -> str:
    """Stage, method and, where it was measured, time of a decision."""
    stage = decision["stage"] + 1
    method = decision.get("objective") or decision.get("search", "")
    if "seconds" not in decision:
        return f"search for stage {stage} ({method})"
    return f"search for stage {stage} ({method}, {decision['seconds']:.1f} s)"


def scores(candidate: dict[str, Any]) -> dict[str, float]:
    """The numbers that a search gave a candidate; JSON has infinite ones as words."""
    return {name: float(candidate[name]) for name in SCORES if name in candidate}


def is_chosen(decision: dict[str, Any], candidate: dict[str, Any]) -> bool:
    """Whether a search decided for this candidate: the choice is its name, or its depth and resolution."""
    choice = decision["choice"]
    if isinstance(choice, str):
        return candidate["name"] == choice
    return {"depth": depth_of(candidate), "resolution": candidate["resolution"]} == choice


def depth_of(candidate: dict[str, Any]) -> int:
    """Number of blocks that a candidate trains."""
    return candidate["depth"] if "depth" in candidate else len(candidate["blocks"])
