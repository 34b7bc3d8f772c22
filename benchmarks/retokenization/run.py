"""Re-tokenization against ordinary training of the same network, at equal CPU time and at equal steps.

    python benchmarks/retokenization/run.py --seeds 0 1 2 3 4

trains `vit/asvit.py train --preset cpu` (emoji in 24 classes, 64 pixels) three ways: `on` as the preset says, `off`
without re-tokenization for as many steps as take the CPU time of `on`, by the cost of its last stage, and, with
`--equal_steps`, `off_steps` for as many steps as `on`. All have their own fully decayed learning rate. One line a run
in runs.jsonl; what is there is not run again. Times are CPU seconds of one thread, without validation.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import Runs, facts, interval, print_rows, save

from autoprog_diffusion.vit.asvit import Genotype
from autoprog_diffusion.vit.asvit.arguments import TrainArguments, parse
from autoprog_diffusion.vit.asvit.training import run_training


PRESET = ["train", "--preset", "cpu", "--validation_steps", "90", "--checkpointing_steps", "100000"]
MEANS = ("steps", "cpu_seconds", "flops", "accuracy", "ema_accuracy", "ema_loss")


def preset(*flags: str) -> TrainArguments:
    args = parse([*PRESET, *flags])
    assert isinstance(args, TrainArguments)
    return args


def run(runs: Runs, method: str, seed: int, steps: int) -> dict[str, Any]:
    """Train once, and return the line of the run; `off` gets the steps that the time of `on` pays for."""
    if method == "off":
        (grown,) = runs.all(method="on", seed=seed)
        steps = round(grown["cpu_seconds"] / grown["full_step_cpu_seconds"])
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--seed", str(seed), "--max_train_steps", str(steps), "--output_dir", folder]
        flags += ["--retokenization", "on" if method == "on" else "off"]
        args = preset(*flags)
        metrics = run_training(args, Genotype.parse(args.genotype)).metrics
    last = metrics.summaries()[-1]
    return {
        **facts(seed),
        "method": method,
        "steps": len(metrics),
        "cpu_seconds": metrics.total("cpu_seconds"),
        "full_step_cpu_seconds": last.cpu_seconds / last.steps,
        "flops": metrics.total("flops"),
        "accuracy": metrics.validations[-1]["accuracy"],
        "ema_accuracy": metrics.validations[-1]["ema_accuracy"],
        "ema_loss": metrics.validations[-1]["ema_loss"],
        "curve": metrics.validations,
    }


def summary(runs: Runs) -> dict[str, Any]:
    """Means over seeds per method, and the paired difference of `on` with a 95 % interval."""
    methods = list(dict.fromkeys(row["method"] for row in runs.rows))
    means = {m: {key: statistics.mean(row[key] for row in runs.all(method=m)) for key in MEANS} for m in methods}
    grown = {row["seed"]: row["ema_accuracy"] for row in runs.all(method="on")}
    differences = {}
    for other in methods:
        pairs = [grown[r["seed"]] - r["ema_accuracy"] for r in runs.all(method=other) if r["seed"] in grown]
        if other != "on" and len(pairs) > 1:
            middle, _, high = interval(pairs)
            differences[other] = {"mean": middle, "half_width_95": high - middle, "seeds": len(pairs)}
    return {"means": means, "on_minus": differences}


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--equal_steps", action="store_true")
    parser.add_argument("--steps", type=int, default=preset().train.max_train_steps, help="of `on`")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="of runs.jsonl and summary.json")
    parser.add_argument("--report", action="store_true", help="only print the table of what has run")
    options = parser.parse_args()
    methods = ["on", "off", *(["off_steps"] if options.equal_steps else [])]
    runs = Runs(options.folder / "runs.jsonl")
    for method, seed in [] if options.report else runs.missing(methods, options.seeds):
        runs.add(run(runs, method, seed, options.steps))
    seeds = " ".join(sorted({str(row["seed"]) for row in runs.rows}))
    result = {**facts(0), "command": f"python benchmarks/retokenization/run.py --seeds {seeds}", **summary(runs)}
    print_rows("mean over seeds", [{"method": method, **mean} for method, mean in result["means"].items()])
    for other, found in result["on_minus"].items():
        print(f"on - {other}: {100 * found['mean']:+.1f} +- {100 * found['half_width_95']:.1f} points (95 %)")
    save(options.folder / "summary.json", result)


if __name__ == "__main__":
    main()
