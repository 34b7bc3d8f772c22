"""The cpu preset of vit/pretrain.py against an ordinary run of equal time, on the data that pip installs.

    python benchmarks/vit_preset/run.py --seeds 0 1 2

For every seed three runs of `vit/pretrain.py --preset cpu`: `preset` as it is (a fixed schedule, stacked blocks, a
learning rate that decays by cost), `ordinary` without growth for as many steps as take the CPU time of `preset` (by
the cost of its last stage, the whole model at full resolution), and `one_shot`, as the paper grows: its search, MoGrow
and a learning rate that decays over the steps. Each has its own fully decayed learning rate. One line per run in
runs.jsonl; what is there is not run again. `--report` writes only the table. Further flags go to `vit/pretrain.py`.
CPU seconds are of a single-threaded process, searches included, validation left out; minutes are wall time of the
whole command.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import Runs, facts, interval, print_rows, save

from autoprog_diffusion.training.run import run
from autoprog_diffusion.vit.training.arguments import parse
from autoprog_diffusion.vit.training.pretraining import Pretraining


METHODS = ("preset", "ordinary", "one_shot")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="of runs.jsonl and summary.json")
    parser.add_argument("--report", action="store_true", help="only write the table of what was run")
    args, extra = parser.parse_known_args()
    torch.set_num_threads(1)
    runs = Runs(args.folder / "runs.jsonl")
    for method, seed in [] if args.report else runs.missing(METHODS, args.seeds):
        runs.add(run_one(runs, method, seed, extra))
    rows = table(runs)
    print_rows("vit/pretrain.py --preset cpu", rows)
    seeds = " ".join(str(row["seed"]) for row in runs.all(method="preset"))
    save(
        args.folder / "summary.json", {"command": f"python benchmarks/vit_preset/run.py --seeds {seeds}", "rows": rows}
    )


def run_one(runs: Runs, method: str, seed: int, extra: list[str]) -> dict[str, Any]:
    """Train once, and return the line of the run."""
    flags = ["--preset", "cpu", "--seed", str(seed), "--report_to", "none", "--checkpointing_steps", "100000", *extra]
    if method == "ordinary":
        (grown,) = runs.all(method="preset", seed=seed)
        steps = round(grown["cpu_seconds"] / grown["full_step_cpu_seconds"])
        flags += ["--growth", "off", "--resolutions", "None", "--max_train_steps", str(steps)]
    elif method == "one_shot":
        flags += ["--search", "one_shot", "--operator", "momentum"]
    with tempfile.TemporaryDirectory() as folder:
        AcceleratorState._reset_state(reset_partial_state=True)
        trainer = run(Pretraining(), parse([*flags, "--output_dir", f"{folder}/out"]))
        growth = json.loads(Path(folder, "out", "growth.json").read_text(encoding="utf-8"))
    last, stage = growth["validations"][-1], growth["stages"][-1]
    return {
        **facts(seed),
        "method": method,
        "steps": trainer.max_steps,
        "images": len(trainer.data.val),
        "cpu_seconds": growth["training_cpu_seconds"],
        "full_step_cpu_seconds": stage["cpu_seconds"] / stage["steps"],
        "flops": growth["training_flops"],
        "wall": growth["seconds"],
        "accuracy": last["ema_accuracy"],
        "curve": growth["validations"],
        "stages": [(row["blocks"], row["resolution"], row["steps"]) for row in growth["stages"]],
    }


def table(runs: Runs) -> list[dict[str, Any]]:
    """Means over the seeds that all methods have run; the gain is over the ordinary run of the same seed."""
    found = {method: {row["seed"]: row for row in runs.all(method=method)} for method in METHODS}
    seeds = sorted(set.intersection(*(set(some) for some in found.values())))
    rows = []
    for method in METHODS if seeds else ():
        mine = [found[method][seed] for seed in seeds]
        gains = [100 * (found[method][seed]["accuracy"] - found["ordinary"][seed]["accuracy"]) for seed in seeds]
        row: dict[str, Any] = {"method": method, "seeds": len(seeds)}
        row |= {key: statistics.mean(run[key] for run in mine) for key in ("steps", "cpu_seconds", "flops")}
        row["accuracy"] = 100 * statistics.mean(run["accuracy"] for run in mine)
        gain, _, high = interval(gains)
        row |= {"gain": gain, "gain_95": high - gain}
        row["minutes"] = statistics.mean(sum(run["wall"].values()) for run in mine) / 60
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
