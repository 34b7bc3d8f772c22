"""Re-tokenization against ordinary training of the same network, at equal CPU time and at equal steps.

    python benchmarks/asvit_train.py --seeds 0 1 2 3 4

trains `vit/asvit.py train --preset cpu` (emoji in 24 classes, 64 pixels) three ways: `on` as the preset says, `off`
without re-tokenization for as many steps as take the CPU time of `on`, by the cost of its last stage, and, with
`--equal_steps`, `off_steps` for as many steps as `on`. All have their own fully decayed learning rate. One file per
method and seed in results/asvit_train/; what is there is not run again. The table is results/asvit_train.json. Times
are CPU seconds of a single-threaded process, validation left out.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from typing import Any

import torch
from common import RESULTS, facts, save
from rich.console import Console
from rich.table import Table

from autoprog_diffusion.files import write_text_atomically
from autoprog_diffusion.vit.asvit import Genotype
from autoprog_diffusion.vit.asvit.arguments import TrainArguments, parse
from autoprog_diffusion.vit.asvit.training import run_training


FOLDER = RESULTS / "asvit_train"
PRESET = ["train", "--preset", "cpu", "--validation_steps", "90", "--checkpointing_steps", "100000"]
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t by number of seeds


def preset(*flags: str) -> TrainArguments:
    args = parse([*PRESET, *flags])
    assert isinstance(args, TrainArguments)
    return args


def steps_of(method: str, seed: int) -> int:
    """Optimizer steps of a method; `off` gets those that the time of `on` pays for."""
    if method != "off":
        return preset().train.max_train_steps or 0
    grown = json.loads((FOLDER / f"on-{seed}.json").read_text(encoding="utf-8"))
    return round(grown["cpu_seconds"] / grown["full_step_cpu_seconds"])


def run(method: str, seed: int) -> dict[str, Any]:
    """Train once, and keep the result."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--seed", str(seed), "--max_train_steps", str(steps_of(method, seed)), "--output_dir", folder]
        flags += ["--retokenization", "on" if method == "on" else "off"]
        args = preset(*flags)
        log = run_training(args, Genotype.parse(args.genotype)).log
    last = [c for c, stage in zip(log.rows["cpu_seconds"], log.rows["stage"]) if stage == log.rows["stage"][-1]]
    return {
        **facts(seed),
        "method": method,
        "steps": len(log),
        "cpu_seconds": log.total("cpu_seconds"),
        "full_step_cpu_seconds": statistics.mean(last),
        "flops": log.total("flops"),
        "accuracy": log.validations[-1]["accuracy"],
        "ema_accuracy": log.validations[-1]["ema_accuracy"],
        "ema_loss": log.validations[-1]["ema_loss"],
        "curve": log.validations,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds per method, and the paired difference of `on` with a 95 % interval."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    keys = ("steps", "cpu_seconds", "flops", "accuracy", "ema_accuracy", "ema_loss")
    means = {m: {key: statistics.mean(r[key] for r in rows if r["method"] == m) for key in keys} for m in methods}
    by = {(row["method"], row["seed"]): row["ema_accuracy"] for row in rows}
    differences = {}
    for other in methods:
        pairs = [by["on", seed] - by[other, seed] for method, seed in by if method == other and ("on", seed) in by]
        if other != "on" and len(pairs) > 1:
            half = T_95[len(pairs)] * statistics.stdev(pairs) / math.sqrt(len(pairs))
            differences[other] = {"mean": statistics.mean(pairs), "half_width_95": half, "seeds": len(pairs)}
    return {"means": means, "on_minus": differences}


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--equal_steps", action="store_true")
    parser.add_argument("--report", action="store_true", help="only print the table of what has run")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    methods = ["on", "off", *(["off_steps"] if options.equal_steps else [])]
    for seed in [] if options.report else options.seeds:
        for method in methods:
            path = FOLDER / f"{method}-{seed}.json"
            if not path.exists():
                write_text_atomically(path, json.dumps(run(method, seed), indent=1) + "\n")
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("o*-*.json"))]
    command = "python benchmarks/asvit_train.py --seeds " + " ".join(sorted({str(row["seed"]) for row in rows}))
    result = {**facts(0), "command": command, **summary(rows)}
    table = Table("method", "steps", "CPU s", "TFLOPs", "accuracy", "of the average", title="mean over seeds")
    for method, mean in result["means"].items():
        numbers = (f"{mean['cpu_seconds']:.1f}", f"{mean['flops'] / 1e12:.2f}")
        table.add_row(
            method, f"{mean['steps']:.0f}", *numbers, *(f"{mean[k]:.1%}" for k in ("accuracy", "ema_accuracy"))
        )
    Console().print(table)
    for other, found in result["on_minus"].items():
        print(f"on - {other}: {100 * found['mean']:+.1f} +- {100 * found['half_width_95']:.1f} points (95 %)")
    save("asvit_train", result)


if __name__ == "__main__":
    main()
