"""Peak memory of every stage of every plan, for eight denoisers of published size, without a GPU.

    python benchmarks/memory/run.py
    python benchmarks/memory/run.py --models SDXL "Flux dev" --plans full freeze
    python benchmarks/memory/run.py --table   # only print what results.json holds

The library trains real Diffusers classes on a device without memory (`device.py`); `tracker.py` follows what it would
hold. One image of the model's own resolution, bfloat16 autocast. Every row has a process of its own and is kept in
results.json; rows that are there with the same settings are not measured again, unless `--again` asks for it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any


HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))  # the modules that all benchmarks share

import diffusers
from common import ROOT, facts, load, print_rows, save
from plans import PLANS
from published import MODELS, SIZES
from report import GB, flat, full_and_freeze, measured, peaks, targets

from autoprog_diffusion.planner.device import planned_device, without_memory
from autoprog_diffusion.planner.forked import forked
from autoprog_diffusion.planner.settings import Plan
from autoprog_diffusion.planner.step import Run, stages
from autoprog_diffusion.planner.tracker import MemoryTracker


RESULTS = HERE / "results.json"


def measure(model: str, plan: Plan) -> dict[str, Any]:
    """The row of a model and a plan, measured in this process."""
    published = MODELS[model]
    getattr(diffusers, published.cls)  # imported before tensors of the device's own are made
    begin = time.process_time()
    with without_memory() as device, MemoryTracker() as tracker:
        run = Run(plan, published.build, published.inputs, device)
        found = [asdict(stage) for stage in stages(run, tracker)]
    peak = max(found, key=lambda stage: stage["peak"])
    return {
        "peak": peak["peak"],
        "split": peak["split"],
        "host": max(stage["host"] for stage in found),
        "stages": found,
        "cpu_seconds": time.process_time() - begin,
    }


def commit() -> str:
    """The revision of the library that is measured."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip() or "unknown"


def write(results: dict[str, Any], path: Path) -> None:
    """Keep the rows, in the order of models and plans."""
    order = [(model, plan) for model in MODELS for plan in PLANS]
    rows = [row for row in results["rows"] if (row["model"], row["plan"]) in order]
    rows.sort(key=lambda row: order.index((row["model"], row["plan"])))
    tables = {
        "targets": targets(rows),
        "peaks": peaks(rows),
        "default": full_and_freeze(rows),
        "table": [flat(row) for row in measured(rows)],
    }
    save(path, {**facts(0), "parameters": SIZES, **tables, "rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--plans", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="measure rows that are there, too")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--row", nargs=2, metavar=("MODEL", "PLAN"), help="print one row as JSON")
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(args.row[0], PLANS[args.row[1]])))
        return
    if not args.table:
        planned_device()
        for model in args.models:
            getattr(diffusers, MODELS[model].cls)
    results = load(args.output) or {"rows": []}
    asked = [(model, PLANS[plan]) for model in args.models for plan in args.plans]
    for model, plan in [] if args.table else asked:
        settings = json.loads(json.dumps(plan.to_dict()))
        kept = [row for row in results["rows"] if (row["model"], row["plan"]) != (model, plan.name)]
        there = [row for row in results["rows"] if row not in kept and row["settings"] == settings]
        if there and not args.again:
            continue
        row = {"model": model, "plan": plan.name, "settings": settings, "commit": commit()}
        row |= forked(measure, model, plan)
        results["rows"] = [*kept, row]
        write(results, args.output)
        print(model, plan.name, row.get("refused") or f"{row['peak'] / GB:.2f} GB", sep=": ", flush=True)
    write(results, args.output)
    print_rows("Peak memory of one training step, GB", [flat(row) for row in measured(results["rows"])])
    print_rows("Targets, GB", targets(results["rows"]))


if __name__ == "__main__":
    main()
