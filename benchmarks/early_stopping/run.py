"""How soon does a run have its best weights, and what does stopping by the held-out loss save?

    OMP_NUM_THREADS=1 python benchmarks/early_stopping/run.py                  # what is missing of all rows
    OMP_NUM_THREADS=1 python benchmarks/early_stopping/run.py --only sd_overtrained
    python benchmarks/early_stopping/run.py --table                            # the table of the rows that are there

Every row is one run of a recipe in a process of its own: 1 to 6 minutes on an idle core. Each case runs whole and with
`--stop_patience`. Training does not depend on evaluations, so a run that stops has the steps of the whole one up to
there. The clock is CPU time of training and evaluations; pictures and caches are not on it. Every run leaves a line in
runs.jsonl; a suite that is started again does what is missing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from common import Runs, facts, interval, load_recipe, print_rows, save


HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
# Pictures are not on the clock, and few.
CHEAP = ("--num_inference_steps", "2", "--validation_prompts", "cat face", "--checkpointing_steps", "100000")
# A few images, a constant rate, and far more steps than they need.
LONG = ("--max_train_samples", "32", "--train_batch_size", "4", "--max_train_steps", "400")
LONG += ("--lr_scheduler", "constant", "--evaluation_steps", "20")


@dataclass(frozen=True)
class Case:
    """One fine-tuning.

    Attributes:
        recipe: Module of the recipe and its class.
        flags: Of the recipe.
        patience: Evaluations that the run which stops waits.
    """

    recipe: tuple[str, str]
    flags: tuple[str, ...] = ()
    patience: int = 3


SD = ("finetune_sd", "FinetuneSD")
CASES = {
    "sd_overtrained": Case(SD, LONG),
    "sd_overtrained_full": Case(SD, (*LONG, "--growth", "off")),
    "sd_default": Case(SD),
    "dit_default": Case(("finetune_dit", "FinetuneDiT"), ("--validation_prompts", "bird", "--held_out_share", "0.2")),
    "flow_default": Case(("finetune_flow", "FinetuneFlow")),
    "lora_default": Case(("finetune_lora", "FinetuneLora")),
}
METHODS = ("whole", "stopping")


def train(name: str, method: str, seed: int, flags: Sequence[str] = ()) -> dict[str, Any]:
    """One run in this process, as a row; further flags come last."""
    from autoprog_diffusion.training.run import run

    case = CASES[name]
    recipe = load_recipe(*case.recipe)
    with tempfile.TemporaryDirectory() as folder:
        words = [*CHEAP, *case.flags, "--output_dir", folder, "--seed", str(seed)]
        words += flags
        if method == "stopping":
            words += ["--stop_patience", str(case.patience)]
        trainer = run(recipe, recipe.parse(words))
    record = trainer.held_out.record.to_dict()
    cpu = trainer.metrics.rows["cpu_seconds"]
    evaluations = record["evaluations"]
    best = record["best"]
    wall = trainer.metrics.rows["seconds"]
    # Evaluations have no clock of CPU time: their share is one of wall times.
    return {
        "case": name,
        "method": method,
        "seed": seed,
        "steps": trainer.max_steps,
        "end": trainer.step,
        "best_step": best["step"],
        "best_loss": best["loss"],
        "last_loss": evaluations[-1]["loss"],
        "start_loss": evaluations[0]["loss"],
        "training_cpu_seconds": sum(cpu),
        "cpu_seconds_to_best": sum(cpu[: best["step"]]),
        "evaluation_seconds": sum(row["seconds"] for row in evaluations),
        "training_seconds": trainer.metrics.total("seconds"),
        "curve": [[row["step"], row["loss"], row["noise"]] for row in evaluations],
        "curve_seconds": [sum(wall[: row["step"]]) for row in evaluations],
        **facts(seed),
        "command": f"python benchmarks/early_stopping/run.py --row {name} {method} {seed}",
    }


def table(runs: Runs) -> list[dict[str, Any]]:
    """A row per case: means over the seeds that ran both ways."""
    rows = []
    for name in CASES:
        whole = runs.all(case=name, method="whole")
        pairs = []
        for row in whole:
            other = runs.one(case=name, method="stopping", seed=row["seed"])
            if other is not None:
                pairs.append((row, other))
        if not pairs:
            continue
        saved = [1 - b["training_cpu_seconds"] / a["training_cpu_seconds"] for a, b in pairs]
        middle, low, high = interval([100 * share for share in saved])
        count = len(pairs)
        rows.append(
            {
                "case": name,
                "seeds": count,
                "steps": pairs[0][0]["steps"],
                "best step": sum(a["best_step"] for a, _ in pairs) / count,
                "best loss": sum(a["best_loss"] for a, _ in pairs) / count,
                "last loss": sum(a["last_loss"] for a, _ in pairs) / count,
                "stopped at": sum(b["end"] for _, b in pairs) / count,
                "its best loss": sum(b["best_loss"] for _, b in pairs) / count,
                "time saved %": middle,
                "low": low,
                "high": high,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES), help="cases")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many seeds")
    parser.add_argument("--table", action="store_true", help="print the rows that are there, and write the summary")
    parser.add_argument("--row", nargs=3, metavar=("CASE", "METHOD", "SEED"), help="run one row in this process")
    parser.add_argument("--results", type=Path, default=HERE, help="folder of runs.jsonl and summary.json")
    args = parser.parse_args()
    runs = Runs(args.results / "runs.jsonl")
    if args.row:
        name, method, seed = args.row
        runs.add(train(name, method, int(seed)))
        return
    if not args.table:
        for seed in SEEDS[: args.seeds]:
            for name in args.only:
                for method in METHODS:
                    if runs.one(case=name, method=method, seed=seed) is None:
                        words = ["--row", name, method, str(seed), "--results", str(args.results)]
                        subprocess.run([sys.executable, __file__, *words], check=True)
        runs = Runs(args.results / "runs.jsonl")
    rows = table(runs)
    save(args.results / "summary.json", {"rows": rows})
    print_rows("best weights and early stopping", rows)


if __name__ == "__main__":
    main()
