"""Tell the planner what every choice costs in quality: writes `autoprog_diffusion/planner/quality.json`.

python benchmarks/time_to_quality/planned.py
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


HERE = Path(__file__).resolve().parent
SUMMARY = HERE / "summary.json"
RUNS = HERE / "runs.jsonl"
TABLE = HERE.parents[1] / "autoprog_diffusion" / "planner" / "quality.json"
CASES = ("sd_openmoji", "dit_classes", "flow_openmoji", "sd_noto")
NOTE = (
    "loss_percent: final held-out loss above full fine-tuning's, in percent, per case; of a choice: above that of the "
    "same runs without it, over the seeds that both have. against_shorter: FLOPs that a shortened full run needs for "
    "the same loss over the method's. null: not measured. frozen_dtype bfloat16 and checkpointing change nothing, bit "
    "for bit, under bfloat16 autocast."
)


@dataclass(frozen=True)
class Entry:
    """What the planner asks for, and the methods of the benchmark that answer it.

    Attributes:
        choice: The setting.
        name: Its value.
        method: The method that has it; None where none was measured.
        without: The method that differs in this choice only; None for what is trained.
    """

    choice: str
    name: str
    method: str | None = None
    without: str | None = None


ENTRIES = (
    Entry("trained", "full", "full"),
    Entry("trained", "half the steps", "full_short"),
    Entry("trained", "a quarter of the steps", "full_quarter"),
    Entry("trained", "freeze", "freeze"),
    # The recipes' defaults: with an average of the weights, at a constant rate.
    Entry("trained", "freeze from 40%", "late_average"),
    Entry("trained", "freeze from 60%", "later_average"),
    Entry("trained", "unfreeze", "unfreeze"),
    Entry("trained", "LoRA", "lora"),
    Entry("trained", "window 2", "window_2"),
    Entry("trained", "window 4", "window_4"),
    Entry("trained", "window 8", "window_8"),
    Entry("trained", "window 16"),
    Entry("frozen_dtype", "float8", "freeze_8_float8", "freeze_8"),
    Entry("frozen_dtype", "int8", "freeze_8_int8", "freeze_8"),
    Entry("frozen_dtype", "nf4", "freeze_8_nf4", "freeze_8"),
    Entry("optimizer", "adamw8bit", "full_8bit", "full_autocast"),
    Entry("optimizer", "adamw4bit", "full_4bit_bf16", "full_8bit_bf16"),
    Entry("optimizer", "adamw_fp8"),
    Entry("optimizer", "adafactor"),
    Entry("trained_dtype", "bfloat16", "full_8bit_bf16", "full_8bit"),
    Entry("step_in_backward", "on"),
)


def losses(summary: dict[str, Any], method: str) -> dict[str, float]:
    """Case -> final loss above that of full fine-tuning, in percent."""
    return _column(summary, method, "excess")


def _column(summary: dict[str, Any], method: str, column: str) -> dict[str, float]:
    found = {}
    for case in CASES:
        for row in summary.get(case, []):
            if row["name"] == method:
                found[case] = row[column]
    return found


def row_of(entry: Entry, summary: dict[str, Any]) -> dict[str, Any]:
    """The planner's row of an entry."""
    row: dict[str, Any] = {"choice": entry.choice, "name": entry.name, "method": entry.method}
    if entry.method is None:
        return {**row, "loss_percent": None, "against_shorter": None}
    found = losses(summary, entry.method)
    if entry.without is not None:
        return {**row, "loss_percent": paired(summary, entry.method, entry.without) or None, "against_shorter": None}
    return {**row, "loss_percent": found, "against_shorter": _column(summary, entry.method, "schedules_ratio")}


def paired(summary: dict[str, Any], method: str, without: str) -> dict[str, float]:
    """Case -> final loss of a method above that of another one, in percent, over the seeds that both have.

    Args:
        summary: Of the benchmark; each method counts at the rate that it has there.
        method: The method.
        without: The other one.
    """
    runs = [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()]
    found = {}
    for case in CASES:
        finals = []
        for name in (method, without):
            rate = _column(summary, name, "rate").get(case)
            own = (row for row in runs if (row["case"], row["method"], row["rate"]) == (case, name, rate))
            finals.append({row["seed"]: row["curve"][-1]["held_out_loss"] for row in own})
        seeds = set(finals[0]) & set(finals[1])
        if seeds:
            mean = sum(finals[0][seed] / finals[1][seed] for seed in seeds) / len(seeds)
            found[case] = round(100 * (mean - 1), 5)
    return found


def table(summary: dict[str, Any]) -> dict[str, Any]:
    """The planner's file."""
    return {
        "source": "benchmarks/time_to_quality/summary.json",
        "note": NOTE,
        "cases": list(CASES),
        "rows": [row_of(entry, summary) for entry in ENTRIES],
    }


def main() -> None:
    summary = json.loads(SUMMARY.read_text(encoding="utf-8"))
    TABLE.write_text(json.dumps(table(summary), indent=1) + "\n", encoding="utf-8")
    print(f"written: {TABLE}", file=sys.stderr)


if __name__ == "__main__":
    main()
