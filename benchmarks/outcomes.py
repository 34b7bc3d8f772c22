"""The table of README's first screen: what each way of fine-tuning takes and gives, put together from other results.

python benchmarks/outcomes.py  # reads memory/results.json and time_to_quality/summary.json, writes outcomes.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import load, save


HERE = Path(__file__).parent


@dataclass(frozen=True)
class Way:
    """A way of fine-tuning.

    Attributes:
        words: For the table.
        plan: Its name in memory/results.json.
        method: Its name in time_to_quality.
        joint: Its name there for models with joint attention, where that differs.
    """

    words: str
    plan: str
    method: str
    joint: str | None = None


WAYS = (
    Way("full fine-tuning", "full", "full"),
    Way("full, half of the steps", "full", "full_short"),
    Way("**this library's default**: freezing late, an average", "freeze", "late_average", joint="later_average"),
    Way(
        "full in low precision: bfloat16 weights, 8-bit Adam, steps inside of the backward pass",
        "full, bf16 weights, 8-bit Adam, step in backward, checkpointing",
        "full_8bit_bf16",
    ),
    Way("an eighth of the blocks at a time, others in float8", "window 1/8, frozen float8, checkpointing", "window_8"),
    Way("LoRA; its base in nf4 for the GB", "LoRA, frozen nf4, checkpointing", "lora"),
)


def value(rows: list[dict[str, Any]], method: str, key: str, text: str) -> str:
    """A number of a method as text; a dash where it was not measured."""
    row = next((row for row in rows if row["name"] == method), None)
    return "-" if row is None or row.get(key) is None else text.format(row[key])


def table() -> list[dict[str, str]]:
    """A row for every way."""
    peaks = {row["plan"]: row for row in load(HERE / "memory" / "results.json")["peaks"]}
    quality = load(HERE / "time_to_quality" / "summary.json")
    rows = []
    for way in WAYS:
        row = {"way": way.words, "sdxl": str(peaks[way.plan]["sdxl"]), "fluxdev": str(peaks[way.plan]["fluxdev"])}
        for case, name in (("sd_openmoji", "unet"), ("dit_classes", "dit"), ("flow_openmoji", "sd3")):
            method = (way.joint if name == "sd3" else None) or way.method
            row[name] = value(quality[case], method, "excess", "{:+.1f} %")
        # Low precision takes its time from software on a CPU: no time is told for it.
        narrow = way.method.startswith("full_8bit")
        row["time"] = "-" if narrow else value(quality["sd_openmoji"], way.method, "cpu_percent", "{:.0f} %")
        rows.append(row)
    return rows


def main() -> None:
    save(HERE / "outcomes.json", {"rows": table()})


if __name__ == "__main__":
    main()
