"""Rows of the memory benchmark as tables, in GB (10^9 bytes; a card of 24 GB has 25.8 of them)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plans import PLANS
from published import MODELS


Row = dict[str, Any]
GB = 1e9
SHOWN = ("weights", "copies", "gradients", "optimizer", "activations", "other")
# Model, gigabytes that one plan at least should need, and whether a LoRA is trained or every parameter.
TARGETS = (
    ("SDXL", 12, "all"),
    ("Z-Image", 16, "all"),
    ("SD3.5 large", 24, "all"),
    ("Flux dev", 24, "all"),
    ("Flux dev", 16, "LoRA"),
)


def measured(rows: Sequence[Row]) -> list[Row]:
    """Those that are no refusals."""
    return [row for row in rows if "refused" not in row]


def flat(row: Row) -> Row:
    """A measured row without its stages, in GB."""
    split = {kind: row["split"][kind] / GB for kind in SHOWN}
    return {"model": row["model"], "plan": row["plan"], "peak": row["peak"] / GB, **split, "host": row["host"] / GB}


def slug(model: str) -> str:
    """Name of a model's column."""
    return "".join(letter for letter in model.lower() if letter.isalnum())


def peaks(rows: Sequence[Row]) -> list[Row]:
    """A row per plan and a column per model: its peak as text, a dash where there is none."""
    found = {(row["model"], row["plan"]): f"{row['peak'] / GB:.1f}" for row in measured(rows)}
    plans = [plan for plan in PLANS if any((model, plan) in found for model in MODELS)]
    return [{"plan": plan, **{slug(model): found.get((model, plan), "-") for model in MODELS}} for plan in plans]


def targets(rows: Sequence[Row]) -> list[Row]:
    """For every target the plan that needs least."""
    found = []
    for model, limit, trained in TARGETS:
        adapters = trained == "LoRA"
        own = [
            row
            for row in measured(rows)
            if row["model"] == model and (row["settings"]["lora"] is not None) == adapters
        ]
        if own:
            best = flat(min(own, key=lambda row: row["peak"]))
            met = "yes" if best["peak"] <= limit else "no"
            # Plain training never meets a target: a plan that saves memory has to have been measured.
            if met == "no" and {row["plan"] for row in own} <= {"full", "freeze", "LoRA"}:
                met = "not measured yet"
            found.append({**best, "trained": trained, "target": limit, "met": met})
    return found


def full_and_freeze(rows: Sequence[Row]) -> list[Row]:
    """Peak of the default plan above plain full fine-tuning, per model, in bytes."""
    found = []
    for model in MODELS:
        own = {row["plan"]: row["peak"] for row in measured(rows) if row["model"] == model}
        if {"full", "freeze"} <= set(own):
            found.append({"model": model, "full": own["full"] / GB, "more_bytes": own["freeze"] - own["full"]})
    return found
