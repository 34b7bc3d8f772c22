"""The recipe against Diffusers' own script: the same model, images, steps, rate and seed, side by side.

    DIFFUSERS_CHECKOUT=<folder> python benchmarks/against_diffusers/run.py --quick    # a few steps: under 10 minutes
    DIFFUSERS_CHECKOUT=<folder> python benchmarks/against_diffusers/run.py            # what is missing of all rows
    DIFFUSERS_CHECKOUT=<folder> python benchmarks/against_diffusers/run.py --all_cores --steps 400   # by the clock
    python benchmarks/against_diffusers/run.py --table                                # the table of the rows there are

Every row is one run in a process of its own, as a user starts it, from the import to the saved pipeline: its wall
time, its CPU time and its peak of memory are those that the operating system tells. Time of a step is the median time
between two steps of the optimizer. The held-out loss of what was saved comes from evaluate.py, for both sides.
Since other jobs may run, CPU time is what is compared; with one thread it is the time on an idle machine. With
`--all_cores` both sides run as `accelerate launch` starts them, Diffusers' script with one thread and the recipe with
the threads that it takes, and wall time is compared: nothing else may run then. Every run leaves a line in runs.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from cases import CASES, METHODS, Case, Method
from common import ROOT, Runs, facts, load, print_rows, save


HERE = Path(__file__).parent
STEPS = 100
LONG = 400  # with --steps 400, where what comes before the first step weighs less
QUICK_STEPS = 12
QUICK = ("theirs", "ours", "no_cache", "no_growth")
USUAL = ("sd", "sd3")  # the cases that a CPU trains
CLOCKED = ("theirs", "ours", "ours_75", "ours_50")  # by the clock of an idle machine
SIDE = 64
MEBIBYTE = 2**20


def checkout() -> Path:
    """Diffusers' repository.

    Raises:
        SystemExit: The environment does not name it.
    """
    folder = os.environ.get("DIFFUSERS_CHECKOUT")
    if folder is None or not (Path(folder) / "examples").is_dir():
        raise SystemExit(
            f"DIFFUSERS_CHECKOUT is {folder!r}, where no examples/ is: set it to a checkout of Diffusers' repository, "
            "git clone https://github.com/huggingface/diffusers."
        )
    return Path(folder)


def write_data(folder: Path) -> None:
    """Write the default pictures as two folders of images with captions: `images` and, of other emoji, `held`."""
    from autoprog_diffusion.data.emoji import emoji_dataset

    for name, split in (("held", "held_out"), ("images", "train")):
        place = folder / name
        place.mkdir(parents=True)
        lines = []
        for number, row in enumerate(emoji_dataset("openmoji", size=SIDE, split=split)):
            file = f"{number:05}.png"
            row["image"].save(place / file)
            lines.append(json.dumps({"file_name": file, "text": row["text"]}))
        (place / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def command(case: Case, method: Method, folder: Path, steps: int, seed: int) -> list[str]:
    """The script and its flags."""
    places = {"model": str(folder / "model"), "images": str(folder / "images"), "held": str(folder / "held")}
    flags = case.theirs if method.theirs else case.ours
    script = checkout() / "examples" / case.script if method.theirs else ROOT / "recipes" / case.recipe
    count = max(1, round(steps * method.share))
    words = [word.format(**places) for word in (*flags, *method.flags)]
    own = ["--output_dir", str(folder / "out"), "--max_train_steps", str(count), "--seed", str(seed)]
    return [str(script), *words, *own]


def train(name: str, method_name: str, seed: int, steps: int, *, all_cores: bool) -> dict[str, Any]:
    """One run, as a row; with all cores, the recipe chooses its threads as it does for a user."""
    case = CASES[name]
    method = METHODS[method_name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_data(folder)
        case.save(folder / "model")
        words = command(case, method, folder, steps, seed)
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",  # as `accelerate launch` sets it
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(folder / "hub"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"),
        }
        if all_cores and not method.theirs:
            del environment["OMP_NUM_THREADS"]
        clocked = [sys.executable, str(HERE / "clocked.py"), str(folder / "times.json"), *words]
        with open(folder / "log", "wb") as log:
            started = time.perf_counter()
            process = subprocess.Popen(clocked, env=environment, cwd=folder, stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - started
            process.returncode = status
        if status != 0:
            raise SystemExit((folder / "log").read_text(encoding="utf-8", errors="replace")[-4000:])
        times = load(folder / "times.json")
        clock = times["steps"]
        loss = evaluated(name, folder / "out", folder / "held") if case.trained else None
        stages = load(folder / "out" / "growth.json").get("seconds", {})
    return {
        "case": name,
        "method": method_name,
        "seed": seed,
        "steps": len(clock),
        "of_steps": steps,
        "cores": "all" if all_cores else "one",
        "loss": loss,
        "wall_seconds": wall,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "step_wall_seconds": between(clock, 0),
        "step_cpu_seconds": between(clock, 1),
        "first_step_cpu_seconds": clock[0][1],
        "training_cpu_seconds": clock[-1][1] - clock[0][1],
        "memory_mib": usage.ru_maxrss * 1024 / MEBIBYTE,
        "gpu_peak": times["gpu_peak"],
        "phases": stages,
        **facts(seed),
        "threads": times["threads"],
        "command": f"python benchmarks/against_diffusers/run.py --row {name} {method_name} {seed} --steps {steps}"
        + " --all_cores" * all_cores,
    }


def between(clock: list[list[float]], which: int) -> float:
    """Median time between two steps."""
    values = [entry[which] for entry in clock]
    return median(later - earlier for earlier, later in zip(values, values[1:]))


def evaluated(name: str, pipeline: Path, held: Path) -> float:
    """Held-out loss of a saved pipeline, in a process of its own."""
    words = [sys.executable, str(HERE / "evaluate.py"), name, str(pipeline), str(held)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])["loss"]


def table(runs: Runs, steps: int = STEPS, cores: str = "one") -> list[dict[str, Any]]:
    """A row per case and method: medians over seeds, and the ratio to Diffusers' script of the same case."""
    rows = []
    for name in CASES:
        base = averaged(runs.all(case=name, method="theirs", of_steps=steps, cores=cores))
        for method_name, method in METHODS.items():
            row = averaged(runs.all(case=name, method=method_name, of_steps=steps, cores=cores))
            if row is None or base is None:
                continue
            rows.append(
                {
                    "case": name,
                    "method": method_name,
                    "words": method.words,
                    "runs": row["runs"],
                    "steps": row["steps"],
                    "step_ms": 1000 * row["step_cpu_seconds"],
                    "cpu_seconds": row["cpu_seconds"],
                    "wall_seconds": row["wall_seconds"],
                    "threads": row["threads"],
                    "memory_mib": row["memory_mib"],
                    "loss": row["loss"],
                    "loss_percent": 100 * (row["loss"] / base["loss"] - 1),
                    "step_ratio": base["step_cpu_seconds"] / row["step_cpu_seconds"],
                    "whole_ratio": base["cpu_seconds"] / row["cpu_seconds"],
                    "wall_ratio": base["wall_seconds"] / row["wall_seconds"],
                    "training_ratio": base["training_cpu_seconds"] / row["training_cpu_seconds"],
                }
            )
    return rows


def averaged(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Medians over the runs of one kind; None without any."""
    if not found:
        return None
    names = [key for key, value in found[0].items() if isinstance(value, float)]
    row = {name: median(entry[name] for entry in found) for name in names}
    return {**row, **{name: found[0][name] for name in ("steps", "threads")}, "runs": len(found)}


def do_missing(runs: Runs, args: argparse.Namespace, steps: int) -> None:
    """Run the rows that are not there yet, each in a process of its own."""
    usual = CLOCKED if args.all_cores else tuple(METHODS)
    methods = args.methods or (QUICK if args.quick else usual)
    cores = "all" if args.all_cores else "one"
    for seed in range(args.seeds):
        for name in args.only:
            for method in methods:
                if runs.one(case=name, method=method, seed=seed, of_steps=steps, cores=cores) is None:
                    words = ["--row", name, method, str(seed), "--steps", str(steps), "--results", str(args.results)]
                    words += ["--all_cores"] * args.all_cores
                    subprocess.run([sys.executable, __file__, *words], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(USUAL), help="cases")
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), help="methods")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds")
    parser.add_argument("--steps", type=int, default=STEPS, help="of Diffusers' script")
    parser.add_argument("--quick", action="store_true", help="a few steps, a few methods, in a folder of its own")
    parser.add_argument("--all_cores", action="store_true", help="by the clock of a machine where nothing else runs")
    parser.add_argument("--table", action="store_true", help="print the rows that are there, and write the summary")
    parser.add_argument("--row", nargs=3, metavar=("CASE", "METHOD", "SEED"), help="run one row in this process")
    parser.add_argument("--results", type=Path, default=HERE, help="folder of runs.jsonl and summary.json")
    args = parser.parse_args()
    runs = Runs(args.results / "runs.jsonl")
    if args.row:
        name, method, seed = args.row
        runs.add(train(name, method, int(seed), args.steps, all_cores=args.all_cores))
        return
    steps = QUICK_STEPS if args.quick else args.steps
    if args.quick:
        args.results = Path(tempfile.mkdtemp())
        runs = Runs(args.results / "runs.jsonl")
    if not args.table:
        checkout()
        do_missing(runs, args, steps)
    runs = Runs(args.results / "runs.jsonl")
    rows = table(runs, steps)
    longer = table(runs, LONG)
    clocked = table(runs, LONG, "all")
    save(args.results / "summary.json", {"rows": rows, "longer": longer, "clocked": clocked})
    print_rows("the recipe against Diffusers' script, CPU time", rows)
    if longer:
        print_rows(f"the same with {LONG} steps", longer)
    if clocked:
        print_rows(f"{LONG} steps by the clock, all cores", clocked)
    if args.quick:
        shutil.rmtree(args.results)


if __name__ == "__main__":
    main()
