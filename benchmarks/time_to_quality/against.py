"""Rows of tables that set every method of a case against full fine-tuning of the same length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from table import SCHEDULES, Row, needed_by_full, steady_cpu


def rows_against_full(found: Mapping[str, Row], titles: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for every run of a case and seed; none before full fine-tuning has its three lengths.

    Args:
        found: Runs by the name of their method, all of one seed.
        titles: What each method is called, by its name.
    """
    if not set(SCHEDULES) <= set(found):
        return []
    ends = {method: row["curve"][-1] for method, row in found.items()}
    schedules = [(ends[each]["flops"], ends[each]["held_out_loss"]) for each in SCHEDULES]
    return [
        {
            "name": method,
            "method": titles[method],
            "rate": found[method]["rate"],
            "loss": end["held_out_loss"],
            "loss_percent": 100 * (end["held_out_loss"] / ends["full"]["held_out_loss"] - 1),
            "flops_percent": 100 * end["flops"] / ends["full"]["flops"],
            "cpu_percent": 100 * steady_cpu(found[method]) / steady_cpu(found["full"]),
            "in_flops": needed_by_full(schedules, end["held_out_loss"]) / end["flops"],
        }
        for method, end in ends.items()
    ]
