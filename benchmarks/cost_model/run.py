"""Does the cost model predict the step time of a candidate? Predicted against measured, with a plot.

    python benchmarks/cost_model/run.py

Three models, six candidates each. Predicted: the costs of the units, measured once per model (`measure_costs`) and
added up. Measured: real steps (forward, backward, AdamW, zero_grad) under a GrowthScheduler that trains the candidate,
medians over rounds in which the candidates take turns. About 6 minutes on 2 CPU cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import facts, print_rows, save
from models import SMALL, make_call
from steps import Candidate, Steps

from autoprog_diffusion.growth import find_adapter, select_blocks
from autoprog_diffusion.search.cost import measure_costs
from autoprog_diffusion.search.probe import leaving_no_trace


HERE = Path(__file__).parent
SEED, ROUNDS, BATCH = 0, 12, 8
CANDIDATES = (
    ("interleaved", 0.25),
    ("interleaved", 0.5),
    ("suffix", 0.25),
    ("suffix", 0.5),
    ("prefix", 0.5),
    ("full", 1.0),
)


def compare(name: str, rounds: int) -> list[dict[str, Any]]:
    """Predicted and measured seconds of every candidate of a model."""
    model, inputs = SMALL[name](BATCH)
    layout = find_adapter(model).layout(model)
    call = make_call(model, inputs)
    count = len(layout.blocks)
    found = []
    for order, share in CANDIDATES:
        blocks = tuple(range(count)) if order == "full" else select_blocks(order, count, share)
        found.append(Candidate(f"{order} {share:.0%}", blocks))
    steps = Steps(model, inputs)
    times: dict[str, list[float]] = {candidate.name: [] for candidate in found}
    predictions: dict[str, list[float]] = {candidate.name: [] for candidate in found}
    for turn in range(rounds):
        for candidate in found:
            times[candidate.name] += [sum(parts) for parts in steps.times(candidate, 1, time.perf_counter)]
        if turn % 4 == 1:
            with leaving_no_trace(model):
                costs = measure_costs(model, layout, call, [candidate.blocks[0] for candidate in found], repeats=5)
            for candidate in found:
                predictions[candidate.name].append(costs.step(layout, candidate.blocks))
    rows = []
    for label, seconds in times.items():
        predicted, measured = median(predictions[label]), median(seconds)
        row = {"model": name, "candidate": label, "predicted": predicted, "measured": measured}
        rows.append({**row, "error": predicted / measured - 1})
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 6), dpi=110)
    axis = figure.subplots()
    for index, name in enumerate(SMALL):
        mine = [row for row in rows if row["model"] == name]
        points = [[1000 * row[key] for row in mine] for key in ("measured", "predicted")]
        axis.scatter(*points, label=name, color=f"C{index}")
    low, high = (f(1000 * row["measured"] for row in rows) for f in (min, max))
    line = [0.8 * low, 1.2 * high]
    axis.plot(line, line, color="0.4", linewidth=1)
    axis.fill_between(line, [0.9 * x for x in line], [1.1 * x for x in line], color="0.5", alpha=0.2, label="10 %")
    axis.set(xlabel="measured step (ms)", ylabel="predicted step (ms)", xscale="log", yscale="log")
    axis.legend()
    figure.tight_layout()
    figure.savefig(path)


def summed(model: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors of the prediction over some candidates."""
    errors = sorted(abs(row["error"]) for row in rows)
    return {
        "model": model,
        "candidates": len(rows),
        "within_10_percent": sum(error <= 0.1 for error in errors),
        "median_error_percent": 100 * median(errors),
        "largest_error_percent": 100 * errors[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="at least 2")
    parser.add_argument("--output", type=Path, default=HERE / "summary.json")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    rows = [row for name in SMALL for row in compare(name, args.rounds)]
    summary = [summed(name, [row for row in rows if row["model"] == name]) for name in SMALL]
    summary.append(summed("all", rows))
    print_rows("step time, predicted and measured", rows)
    print_rows("error of the prediction", summary)
    save(args.output, {**facts(SEED), "rows": rows, "summary": summary})
    draw(rows, args.output.with_name("plot.png"))


if __name__ == "__main__":
    main()
