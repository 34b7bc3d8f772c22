"""How close a stage's step comes to its share of the FLOPs of full training, and what it holds in memory.

    python benchmarks/stage_limit/run.py

Three models, full training and every order at three levels, two lower resolutions, and those with a batch of about as
many pixels as the full one. Predicted: FLOPs of forward and backward pass by PyTorch's counter. Measured: steps of a
real AdamW loop under a GrowthScheduler, candidates in turns, the fastest one (other jobs only add to it). Memory:
activations that autograd saves, gradients and optimizer state, counted. One thread, about 6 minutes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import facts, other_models, print_rows, save
from models import SMALL
from steps import Steps, candidates, measure


HERE = Path(__file__).parent
SEED, BATCH, ROUNDS, REPEATS, RESOLUTIONS = 0, 4, 2, 2, (0.5, 0.75)
WITHIN = 0.15
SHOWN = ("candidate", "step_s", "step_share", "flops_share", "above_bound", "held_share")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), dpi=110)
    left, right = figure.subplots(1, 2)
    for index, name in enumerate(SMALL):
        mine = [row for row in rows if row["model"] == name]
        for own, marker in ((False, "o"), (True, "^")):
            some = [row for row in mine if (row["resolution"] < 1) is own]
            label = f"{name}, {'lower resolution' if own else 'full resolution'}"
            for axis, key in ((left, "step_share"), (right, "held_share")):
                points = [[row[k] for row in some] for k in ("flops_share", key)]
                axis.scatter(*points, label=label, color=f"C{index}", marker=marker)
    left.plot([0, 1.05], [0, 1.05], color="0.4", linewidth=1)
    left.fill_between([0, 1.05], [0, 1.05 * (1 - WITHIN)], [0, 1.05 * (1 + WITHIN)], color="0.5", alpha=0.2)
    left.set(xlabel="FLOPs, share of full training", ylabel="step time, share of full training")
    right.set(xlabel="FLOPs, share of full training", ylabel="activations, gradients, optimizer: share of full")
    left.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="visits of every candidate")
    parser.add_argument("--models", nargs="+", choices=SMALL, default=list(SMALL), help="others keep their rows")
    parser.add_argument("--output", type=Path, default=HERE / "summary.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    rows = other_models(args.output, args.models)
    for name in args.models:
        model, inputs = SMALL[name](BATCH)
        found = measure(Steps(model.train(), inputs), candidates(model, RESOLUTIONS), args.rounds, REPEATS)
        rows += [{"model": name, **row} for row in found]
        print_rows(name, [{key: row[key] for key in SHOWN} for row in found])
    stages = [row for row in rows if row["resolution"] == 1 and row["candidate"] != "full"]
    scaled = [row for row in rows if row["batch"] > 1]
    small = [row for row in rows if row["resolution"] < 1 and row["batch"] == 1]
    summary = {name: summed(some) for name, some in (("stages", stages), ("scaled", scaled), ("small", small))}
    for name, values in summary.items():
        print(f"{name}: {values['within']} of {values['count']} within {WITHIN:.0%}, worst {values['worst']:+.1%}")
    settings = {"batch": BATCH, "rounds": args.rounds, "within": WITHIN}
    save(args.output, {**facts(SEED), **settings, "summary": summary, "rows": rows})
    draw(rows, args.output.with_name("plot.png"))


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many rows are at most `WITHIN` above their share of the FLOPs, and the one farthest above it."""
    return {
        "count": len(rows),
        "within": sum(row["above_bound"] <= WITHIN for row in rows),
        "worst": max(row["above_bound"] for row in rows),
        "worst_of": max(rows, key=lambda row: row["above_bound"])["model"],
    }


if __name__ == "__main__":
    main()
