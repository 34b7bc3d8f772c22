"""PEFT's benchmark of image generation: one subject, its likeness and what is forgotten for it, memory and time.

    OMP_NUM_THREADS=1 python benchmarks/peft_image_gen/run.py                  # what is missing of the bundled model
    python benchmarks/peft_image_gen/run.py --case klein                       # FLUX.2 Klein and PEFT's cat, on a GPU
    python benchmarks/peft_image_gen/run.py --table                            # the table of the rows that are there

Every row is one run of a recipe in a process of its own, and then pictures: likeness is the mean cosine of features of
drawn and held-out pictures of the subject, drift half of 1 less that of pictures of other prompts before and after.
Learning rates are chosen on seed 0 by the likeness of the two pictures that validate, and the table is of other seeds.
Every run leaves a line in runs.jsonl. `--model`, `--images` and `--features` name folders where there is no Hub.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import mean
from typing import Any


os.environ.setdefault("TQDM_DISABLE", "1")
HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))  # the modules that all benchmarks share

import torch
from cases import CASES, MAIN, METHODS, Case, Method
from common import Runs, facts, load, load_recipe, print_rows, save
from judge import before, judge, keep
from judge import load as load_pipeline
from plot import draw, draw_samples
from subject import Split, split, write

from autoprog_diffusion.planner.forked import forked


START = "start"  # the row of the model before training
TUNING_SEED = 0
MEBIBYTE = 2**20
HELD = ("weights", "gradients", "optimizer", "activations")
STOPPING = ("--stop_patience", "3")
EVALUATIONS = 10  # of a run that may stop


@dataclass(frozen=True)
class Job:
    """One run."""

    method: str
    seed: int
    rate: float


def command(case: Case, method: Method, job: Job, place: Path) -> list[str]:
    """Flags of the recipe."""
    steps = method.steps(case)
    words = ["--train_data_dir", str(place / "train"), "--output_dir", str(place / "out"), "--resolution"]
    words += [str(case.size), "--seed", str(job.seed), "--max_train_steps", str(steps)]
    words += ["--learning_rate", str(job.rate), "--checkpointing_steps", str(10**9)]
    words += ["--validation_prompts", case.drift_prompts[0], "--num_inference_steps", "1"]
    if case.model is not None:
        words += ["--pretrained_model_name_or_path", case.model]
    if method.stops:
        every = max(1, steps // EVALUATIONS)
        words += ["--validation_data_dir", str(place / "validation"), "--evaluation_steps", str(every), *STOPPING]
    else:
        words += ["--no-held_out"]
    return [*words, *method.all_flags(case)]


def train(case: Case, job: Job, place: Path) -> dict[str, Any]:
    """Train once in this process, and tell what it took."""
    from autoprog_diffusion.training.run import run

    method = METHODS[job.method]
    module, kind = ("finetune_lora", "FinetuneLora") if method.lora else case.recipe
    recipe = load_recipe(module, kind)
    trainer = run(recipe, recipe.parse(command(case, method, job, place)))
    report = load(place / "out" / "growth.json")
    saved = place / "out"
    weights = [saved / "pytorch_lora_weights.safetensors"]
    if not method.lora:
        weights = [path for part in ("unet", "transformer") for path in (saved / part).glob("*.safetensors")]
    return {
        "steps": trainer.max_steps,
        "end": trainer.step,
        "trained_parameters": max(entry["trainable_parameters"] for entry in report["history"]),
        "memory": max(memory_of_stages(report)),
        "training_seconds": sum(stage["seconds"] for stage in report["stages"]),
        "training_cpu_seconds": report["training_cpu_seconds"],
        "training_flops": report["training_flops"],
        "file_bytes": sum(path.stat().st_size for path in weights),
    }


def memory_of_stages(report: dict[str, Any]) -> Iterator[int]:
    """Bytes of every stage: what PyTorch's allocator gave away on a GPU, on the CPU what the library counts."""
    counted = [entry["memory"] for entry in report["history"]]
    for stage, memory in zip(report["stages"], counted):
        on_gpu = report["device"] != "cpu" or memory is None
        yield int(stage["memory"]) if on_gpu else sum(memory[key] for key in HELD)


@lru_cache
def pictures_of(case: Case) -> Split:
    """The pictures of the subject, made once."""
    return split(case.pictures(case.images))


def row(case_name: str, case: Case, job: Job, strips: Path) -> dict[str, Any]:
    """One row: a run, what it took and what it draws; in a process of its own."""
    data = pictures_of(case)
    key = {"case": case_name, "method": job.method, "seed": job.seed, "rate": job.rate}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if job.method == START:
            pipeline = load_pipeline(case, None, None)
            took: dict[str, Any] = {}
        else:
            write(data.train, place / "train", case.size)
            write(data.validation, place / "validation", case.size)
            took = train(case, job, place)
            pipeline = load_pipeline(case, METHODS[job.method], place / "out")
        values, pictures = judge(pipeline, case, data, strips / case_name)
    keep(strips / case_name / f"{job.method}_{job.seed}_{job.rate:g}.png", pictures)
    command_line = f"python benchmarks/peft_image_gen/run.py --case {case_name}"
    return {**key, **values, **took, **facts(job.seed), "command": command_line}


def jobs(case: Case, methods: Sequence[str], seeds: int, runs: Runs, name: str) -> Iterator[Job]:
    """Everything asked for: all rates on the first seed, then the best one on the others."""
    yield Job(START, TUNING_SEED, 0.0)
    tuned = dict.fromkeys(METHODS[method].rate_of or method for method in methods)
    for method in tuned:
        yield from (Job(method, TUNING_SEED, rate) for rate in METHODS[method].rates(case))
    for seed in range(TUNING_SEED + 1, seeds):
        for method in methods:
            yield Job(method, seed, best_rate(runs, name, method))


def best_rate(runs: Runs, case: str, method: str) -> float:
    """The rate with the highest likeness of the pictures that validate, on the seed that tunes."""
    shared = METHODS[method].rate_of if method in METHODS else None
    rows = runs.all(case=case, method=shared or method, seed=TUNING_SEED)
    return max(rows, key=lambda row: row["validation_similarity"])["rate"]


def table(runs: Runs) -> list[dict[str, Any]]:
    """A row per case and method: means over the seeds that no rate was chosen on, else of that seed."""
    rows = []
    for name in CASES:
        for method in (START, *METHODS):
            if not runs.all(case=name, method=method):
                continue
            rate = best_rate(runs, name, method)
            later = [one for one in runs.all(case=name, method=method, rate=rate) if one["seed"] != TUNING_SEED]
            found = later or runs.all(case=name, method=method, rate=rate)
            rows.append(
                {
                    "case": name,
                    "method": method,
                    "words": METHODS[method].words if method in METHODS else "before training",
                    "rate": rate,
                    "seeds": len(found),
                    "similarity": mean(one["similarity"] for one in found),
                    "lowest": min(one["similarity"] for one in found),
                    "highest": max(one["similarity"] for one in found),
                    "drift": mean(one["drift"] for one in found),
                    **(taken(found) if method != START else {}),
                }
            )
    return [with_ratios(row, rows) for row in rows]


def taken(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means of what runs took."""
    return {
        "end": mean(one["end"] for one in found),
        "memory_mib": mean(one["memory"] for one in found) / MEBIBYTE,
        "seconds": mean(seconds(one) for one in found),
        "flops": mean(one["training_flops"] for one in found),
        "file_mib": mean(one["file_bytes"] for one in found) / MEBIBYTE,
    }


def seconds(one: dict[str, Any]) -> float:
    """Of the device's clock on a GPU; of the process's CPU elsewhere, where other jobs run."""
    return one["training_cpu_seconds" if one["device"].startswith("cpu") else "training_seconds"]


def with_ratios(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row with its time and memory in percent of full fine-tuning as PEFT trains it."""
    full = [one for one in rows if (one["case"], one["method"]) == (row["case"], "full_last")]
    if not full or row["method"] == START:
        return row
    shares = {f"{key}_percent": 100 * row[key] / full[0][key] for key in ("seconds", "flops")}
    return {**row, **shares, "memory_percent": 100 * row["memory_mib"] / full[0]["memory_mib"]}


def asked_case(args: argparse.Namespace) -> Case:
    """The case, with what the command line names instead of it."""
    case = CASES[args.case]
    steps = {} if args.steps is None else {"full_steps": args.steps, "lora_steps": args.steps}
    given = {name: getattr(args, name) for name in ("model", "images", "features", "size", "inference_steps")}
    return replace(case, **steps, **{name: value for name, value in given.items() if value is not None})


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--case", choices=CASES, default="bundled")
    found.add_argument("--only", nargs="*", choices=METHODS, default=list(MAIN), help="methods")
    found.add_argument("--seeds", type=int, default=3, help="how many; the first one chooses the rates")
    found.add_argument("--table", action="store_true", help="print the rows that are there, and write the summary")
    found.add_argument("--results", type=Path, default=HERE, help="folder of runs.jsonl and summary.json")
    found.add_argument("--strips", type=Path, default=Path(tempfile.gettempdir()) / "peft_image_gen_strips")
    found.add_argument("--row", help=argparse.SUPPRESS)  # of the process that measures it
    found.add_argument("--model", help="folder of the pipeline")
    found.add_argument("--images", help="folder of the twenty pictures")
    found.add_argument("--features", help="folder of a DINOv2")
    found.add_argument("--steps", type=int, help="optimizer steps")
    found.add_argument("--size", type=int, help="side of the pictures")
    found.add_argument("--inference_steps", type=int, help="denoising steps of a picture")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    case = asked_case(args)
    if args.row:
        print(json.dumps(row(args.case, case, Job(**json.loads(args.row)), args.strips)))
        return
    runs = Runs(args.results / "runs.jsonl")
    for job in [] if args.table else jobs(case, args.only, args.seeds, runs, args.case):
        if runs.one(case=args.case, method=job.method, seed=job.seed, rate=job.rate) is not None:
            continue
        found = in_own_process(job, argv) if torch.cuda.is_available() else in_fork(args, case, job)
        runs.add(found)
        print(f"{job}: likeness {found['similarity']:.3f}, drift {found['drift']:.3f}", flush=True)
    rows = table(runs)
    save(args.results / "summary.json", {"rows": rows})
    own = [one for one in rows if one["case"] == args.case]
    if own:
        draw(own, args.results / f"{args.case}.png")
        draw_samples(own, args.strips / args.case, args.results / f"{args.case}_samples.png")
    print_rows("one subject", rows)


def in_fork(args: argparse.Namespace, case: Case, job: Job) -> dict[str, Any]:
    """A row from a child of this process, which has its imports and pictures.

    Raises:
        SystemExit: The run failed; the message says how.
    """
    torch.set_num_threads(1)
    pictures_of(case)
    before(case, args.strips / args.case)
    found = forked(row, args.case, case, job, args.strips)
    if "refused" in found:
        raise SystemExit(f"{job}: {found['refused']}")
    return found


def in_own_process(job: Job, argv: Sequence[str] | None) -> dict[str, Any]:
    """A row from a new process, which has a GPU to itself.

    Raises:
        SystemExit: The run failed; what it said is on the screen.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    command = [sys.executable, __file__, *words, "--row", json.dumps(asdict(job))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job}: the run ended with exit code {done.returncode}.")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
