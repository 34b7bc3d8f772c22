"""AutoProg-Zero where its paper uses it: a DiT fine-tuned for hundreds of epochs on a small data set.

    OMP_NUM_THREADS=1 python benchmarks/papers_regime/run.py             # the runs that are missing, then the table
    OMP_NUM_THREADS=1 python benchmarks/papers_regime/run.py --quick     # 32 steps, in a folder of their own
    python benchmarks/papers_regime/run.py --table                       # the table of the runs that are there

The bundled DiT learns ten new classes, as in `dit_classes` of time_to_quality, whose loop, methods, rates and judge
these runs share; they are twenty times as long. Every run is judged twice: as the paper does, by KID of drawn
pictures after equal steps, and by held-out loss for equal compute, at the best evaluation of the run. Every run
leaves a line in runs.jsonl; a suite that is started again does what is missing.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro


os.environ.setdefault("TQDM_DISABLE", "1")
BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "time_to_quality")]

from cases import CASES
from common import Runs, check_names, facts
from loop import Loop
from methods import AUTOPROG_ZERO, AVERAGED, METHODS
from picture_features import network
from quality import Judge
from report import write_report


HERE = Path(__file__).parent
CASE = CASES["dit_classes"]
STEPS = 3200
QUICK_STEPS = 32
EVALUATIONS = 20
PICTURE_ROUNDS = 5  # of 100 pictures
PAPER_SPEEDUP = 2.86  # the largest that the paper reports
CHOSEN = {
    "full": METHODS["full"],
    "full_average": METHODS["full_average"],
    "full_by_paper": replace(
        METHODS["full"],
        title=f"full, {PAPER_SPEEDUP} times fewer steps",
        share=1 / PAPER_SPEEDUP,
    ),
    "autoprog_zero": AUTOPROG_ZERO,
    "autoprog_zero_average": replace(
        AUTOPROG_ZERO,
        name="autoprog_zero_average",
        title="AutoProg-Zero as published, constant rate and average",
        **AVERAGED,
    ),
    "interleaved": METHODS["interleaved"],
    "interleaved_average": replace(
        METHODS["interleaved"],
        name="interleaved_average",
        title="unfreezing, interleaved (the paper's), constant rate and average",
        **AVERAGED,
    ),
    "late_average": METHODS["late_average"],
    "freeze_8_average": METHODS["freeze_8_average"],
    "lora": METHODS["lora"],
    "lora_average": METHODS["lora_average"],
}
# The best of a grid on seed 0 in 160 steps (benchmarks/time_to_quality), kept here.
RATES = {"lora": 8e-3, "lora_average": 4e-3}
RATE = 5e-4


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        only: Names of methods; none for all.
        seeds: Seeds of every method, from 1 on; 0 tuned the rates.
        steps: Optimizer steps of the full schedule.
        quick: A few steps of one seed, in a folder of their own.
        table: Print the table of the runs that are there, and stop.
        results: Folder of runs.jsonl, summary.json and plot.png.
        cache_dir: Folder of latents.
    """

    only: tuple[str, ...] = ()
    seeds: int = 2
    steps: int = STEPS
    quick: bool = False
    table: bool = False
    results: Path = HERE
    cache_dir: Path = Path(tempfile.gettempdir()) / "autoprog_time_to_quality"


def train(name: str, seed: int, options: Options, judge: Judge | None) -> tuple[dict[str, Any], Judge]:
    """One run with its pictures, as a row, and the judge of the next one."""
    method = CHOSEN[name]
    rate = RATES.get(name, RATE)
    steps = round(options.steps * method.share)
    subject = CASE.open(seed, options.cache_dir, None)
    loop = Loop(subject, method, rate=rate, steps=steps, batch=CASE.batch, seed=seed)
    points = [(number + 1) / EVALUATIONS for number in range(EVALUATIONS)]
    result = loop.train(CASE.repeats, points)
    judge = judge or Judge(subject)
    pictures = judge.score(subject, rounds=1 if options.quick else PICTURE_ROUNDS)
    row = {
        "method": name,
        "title": method.title,
        "rate": rate,
        "steps": steps,
        "batch": CASE.batch,
        "epochs": steps * CASE.batch / subject.count,
        **facts(seed),
        **asdict(result),
        "decisions": [{key: each[key] for key in ("stage", "choice")} for each in loop.growth.decisions],
        "pictures": pictures,
    }
    return row, judge


def run_missing(options: Options) -> None:
    """Every run that has no line yet, the first seed of all methods first."""
    runs = Runs(options.results / "runs.jsonl")
    judge = None
    for seed in range(1, options.seeds + 1):
        for name in options.only or CHOSEN:
            if runs.one(method=name, seed=seed) is None:
                row, judge = train(name, seed, options, judge)
                last = runs.add(row)["curve"][-1]
                print(f"{name}, seed {seed}: held-out loss {last['held_out_loss']:.4f}, {last['cpu']:.0f} CPU s")


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    check_names(options.only, CHOSEN)
    torch.set_num_threads(1)
    if options.quick:
        options = replace(options, seeds=1, steps=QUICK_STEPS, results=Path(tempfile.mkdtemp()))
    if not options.table:
        network()  # before anything is trained that nothing could judge
        run_missing(options)
    write_report(options.results)


if __name__ == "__main__":
    main()
