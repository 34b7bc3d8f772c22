"""The cpu preset of vit/pretrain.py against an ordinary run of equal time, on the data that pip installs.

    python benchmarks/vit_preset.py --seeds 0 1 2

For every seed three runs of `vit/pretrain.py --preset cpu`: `preset` as it is (one-shot search), `ordinary` without
growth for as many steps as take the CPU time of `preset` (by the cost of its last stage, the whole model at full
resolution), and `fixed` with the fixed schedule instead of the search. Each has its own fully decayed learning rate.
One file per method and seed in results/vit_preset/; what is there is not run again. `--report` writes the table,
results/vit_preset.json. CPU seconds are of a single-threaded process, searches included, validation left out; minutes
are of the whole command by the clock.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from common import RESULTS, facts, save
from rich.console import Console
from rich.table import Table

from autoprog_diffusion.files import write_text_atomically
from autoprog_diffusion.vit.training.arguments import parse
from autoprog_diffusion.vit.training.run import run


FOLDER = RESULTS / "vit_preset"
METHODS = ("preset", "ordinary", "fixed")
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t by number of seeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--report", action="store_true", help="only write the table of what was run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for seed in [] if args.report else args.seeds:
        for method in METHODS:
            path = FOLDER / f"{method}-{seed}.json"
            if not path.exists():
                write_text_atomically(path, json.dumps(run_one(method, seed), indent=2) + "\n")
    report()


def run_one(method: str, seed: int) -> dict[str, Any]:
    """Train once and return what the run reported."""
    flags = ["--preset", "cpu", "--seed", str(seed), "--report_to", "none", "--checkpointing_steps", "100000"]
    if method == "ordinary":
        grown = json.loads((FOLDER / f"preset-{seed}.json").read_text(encoding="utf-8"))
        steps = round(grown["cpu_seconds"] / grown["full_step_cpu_seconds"])
        flags += ["--growth", "off", "--resolutions", "None", "--max_train_steps", str(steps)]
    elif method == "fixed":
        flags += ["--search", "fixed"]
    with tempfile.TemporaryDirectory() as folder:
        AcceleratorState._reset_state(reset_partial_state=True)
        trainer = run(parse([*flags, "--output_dir", f"{folder}/out"]))
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
        "stages": [(row["depth"], row["resolution"], row["steps"]) for row in growth["stages"]],
    }


def report() -> None:
    """Print and write means over the seeds that all methods have run."""
    runs = {m: {f.stem.split("-")[1]: json.loads(f.read_text()) for f in FOLDER.glob(f"{m}-*.json")} for m in METHODS}
    seeds = sorted(set.intersection(*(set(found) for found in runs.values())))
    if not seeds:
        return
    rows = []
    for method in METHODS:
        found = [runs[method][seed] for seed in seeds]
        gain = [100 * (runs[method][s]["accuracy"] - runs["ordinary"][s]["accuracy"]) for s in seeds]
        row = {"method": method, "seeds": len(seeds), "steps": statistics.mean(r["steps"] for r in found)}
        row |= {key: statistics.mean(r[key] for r in found) for key in ("cpu_seconds", "flops")}
        row |= {"accuracy": 100 * statistics.mean(r["accuracy"] for r in found), "gain": statistics.mean(gain)}
        row["minutes"] = statistics.mean(sum(r["wall"].values()) for r in found) / 60
        if len(seeds) in T_95:
            row["gain_95"] = T_95[len(seeds)] * statistics.stdev(gain) / math.sqrt(len(seeds))
        rows.append(row)
    save("vit_preset", {"command": "python benchmarks/vit_preset.py --seeds " + " ".join(seeds), "rows": rows})
    table = Table(title="vit/pretrain.py --preset cpu")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
