"""Tables of the rows of a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from device import GB


Row = dict[str, Any]


def of_part(rows: Sequence[Row], part: str) -> list[Row]:
    """The rows of a part that were measured."""
    return [row for row in rows if row["part"] == part and "refused" not in row]


def step_table(rows: Sequence[Row]) -> list[Row]:
    """Mean step of a run, and peak memory, of every model and way; ratios are to full fine-tuning of the model."""
    found = []
    for row in of_part(rows, "steps"):
        same = [one for one in of_part(rows, "steps") if one["model"] == row["model"]]
        base = next((one for one in same if one["way"] == "full"), None)
        again = next((one for one in same if one["way"] == "full, all again"), None)
        found.append(
            {
                "model": row["model"],
                "way": row["way"],
                "batch": row["batch"],
                "step_ms": 1000 * row["step_s"],
                "first_stage_ms": 1000 * row["stages"][0]["step_s"],
                "last_stage_ms": 1000 * row["stages"][-1]["step_s"],
                "peak_gb": row["peak"] / GB,
                "last_stage_gb": row["stages"][-1]["allocated"] / GB,
                "budget_gb": row["budget_gb"],
                "faster": base["step_s"] / row["step_s"] if base else None,
                "faster_than_all_again": again["step_s"] / row["step_s"] if again else None,
                "peak_share": row["peak"] / base["peak"] if base else None,
            }
        )
    return found


def overhead_table(rows: Sequence[Row]) -> list[Row]:
    """Growth's cost per step, by pairs of steps."""
    return [
        {
            "model": row["model"],
            "growth": one["growth"],
            "step_ms": one["off_ms"],
            "overhead_percent": 100 * one["overhead"],
            "low": 100 * one["low"],
            "high": 100 * one["high"],
            "python_us": one["python_us"],
        }
        for row in of_part(rows, "overhead")
        for one in row["rows"]
    ]


def search_table(rows: Sequence[Row]) -> list[Row]:
    """One decision."""
    names = ("model", "seconds", "full_step_s", "of_full_steps", "candidates")
    return [{**{name: row[name] for name in names}, "peak_gb": row["peak"] / GB} for row in of_part(rows, "search")]


def order_table(rows: Sequence[Row]) -> list[Row]:
    """Candidates against full training."""
    names = ("candidate", "step_s", "step_share", "flops_share", "above_bound", "peak_share")
    return [
        {"model": row["model"], **{name: one[name] for name in names}}
        for row in of_part(rows, "orders")
        for one in row["rows"]
    ]


def quality_table(rows: Sequence[Row]) -> list[Row]:
    """Losses at the end, and how soon the default is at full fine-tuning's."""
    found = []
    for row in of_part(rows, "quality"):
        full = [one for one in of_part(rows, "quality") if (one["model"], one["way"]) == (row["model"], "full")]
        target = full[0]["last_loss"] if full else row["last_loss"]
        timed = zip(row["curve"], row["curve_seconds"], strict=True)
        found.append(
            {
                "case": row["model"],
                "way": row["way"],
                "steps": row["steps"],
                "seconds": row["training_seconds"],
                "loss": row["last_loss"],
                "seconds_to_full": next((at for (_, loss, _), at in timed if loss <= target), None),
            }
        )
    return found


def against_table(rows: Sequence[Row]) -> list[Row]:
    """The recipe and Diffusers' script."""
    names = ("wall_seconds", "step_wall_seconds", "loss")
    return [
        {"model": row["model"], "way": row["way"], **{name: row[name] for name in names}}
        | {"peak_gb": row["gpu_peak"] / GB}
        for row in of_part(rows, "against_diffusers")
    ]


TABLES = {
    "steps": step_table,
    "overhead": overhead_table,
    "search": search_table,
    "orders": order_table,
    "quality": quality_table,
    "against_diffusers": against_table,
}


def tables(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Part -> its table, where it has rows, and the rows that were refused."""
    found = {part: make(rows) for part, make in TABLES.items()}
    names = ("part", "model", "way", "refused")
    found["refused"] = [{name: row[name] for name in names} for row in rows if "refused" in row]
    return {part: table for part, table in found.items() if table}


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """What pages quote, and the device that it is of."""
    names = ("device", "driver", "cuda", "torch", "diffusers", "autoprog_diffusion", "memory_gb", "dry_run")
    about = {name: rows[-1].get(name) for name in names} if rows else {}
    return {**about, **tables(rows)}
