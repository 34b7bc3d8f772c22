"""How soon does each method reach the quality that full fine-tuning ends with? Cases, methods and seeds.

    python benchmarks/time_to_quality/run.py --quick                         # one case, one seed: the table
    python benchmarks/time_to_quality/run.py --data_dir ../shared/data       # the committed runs, 4 cases
    python benchmarks/time_to_quality/run.py --list                          # what is there and what is missing

Every method of a case runs in the same loop (loop.py) on the same batches: AdamW, 5 % warm-up, cosine to 0 within its
own schedule. Its learning rate is the best of a small grid on seed 0 of the case. Held-out emoji give the quality:
denoising loss with the same noise and times for all, then pictures (KID, agreement) at the end. Evaluations, caches
and FLOP counts are not on the clock, searches are. Every run leaves a line in runs.jsonl; a suite that is started
again does what is missing. Use one thread (OMP_NUM_THREADS=1): the clock is CPU time of the process.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro


os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from cases import CASES, Case, CaseError
from common import Runs, facts, save
from loop import Loop
from methods import METHODS, Method
from picture_features import network
from plot import draw
from quality import Judge
from table import FIRST, TUNING_SEED, best_rate, print_table, summary


COMMITTED = Path(__file__).parent
QUICK = Path(tempfile.gettempdir()) / "time_to_quality_quick"


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        only: Names like `sd_openmoji` or `sd_openmoji/full`; none for all.
        seeds: Seeds per method; the first one also tunes the learning rate.
        steps: Optimizer steps of the full schedule [the case's own].
        quick: One case and seed, half the steps, the main methods at the committed runs' rates; kept apart from the
            full results.
        list: Print what would run, and stop.
        table: Print the table of the runs that are there, write the summary and the plot, and stop.
        pictures: Draw pictures of the main methods' reported runs for KID and agreement.
        picture_seeds: How many seeds after the first have pictures; a score takes as long as the run.
        data_dir: Folder of emoji_styles_64.parquet, for `sd_noto`; make_data.py makes it.
        results: Folder of runs.jsonl, summary.json and plot.png.
        cache_dir: Folder of latents and text embeddings.
    """

    only: tuple[str, ...] = ()
    seeds: int = 3
    steps: int | None = None
    quick: bool = False
    list: bool = False
    table: bool = False
    pictures: bool = True
    picture_seeds: int = 2
    data_dir: Path | None = None
    results: Path = COMMITTED
    cache_dir: Path = Path(tempfile.gettempdir()) / "autoprog_time_to_quality"


@dataclass(frozen=True)
class Job:
    """One run: a case, a method, a seed and a learning rate."""

    case: Case
    method: Method
    seed: int
    rate: float
    steps: int

    @property
    def key(self) -> dict[str, Any]:
        """The fields that tell its line from others."""
        return {"case": self.case.name, "method": self.method.name, "seed": self.seed, "rate": self.rate}

    def __str__(self) -> str:
        return "{case}/{method}, seed {seed}, rate {rate:g}".format(**self.key)


def jobs(options: Options, runs: Runs) -> Iterator[Job]:
    """Everything asked for, what matters most first; a tuned rate is read when it is due."""
    asked = [(c, m) for c in CASES.values() for m in METHODS.values() if _asked(options, c, m)]
    # A quick run takes the rates that the committed runs were tuned to.
    tuned = Runs(COMMITTED / "runs.jsonl") if options.quick else runs

    def job(case: Case, method: Method, seed: int, rate: float) -> Job:
        return Job(case, method, seed, rate, max(4, round((options.steps or case.steps) * method.share)))

    for pairs in ([p for p in asked if p[1].main], [p for p in asked if not p[1].main]):
        if not options.quick:
            yield from (job(case, method, TUNING_SEED, rate) for case, method in pairs for rate in method.rates)
        for seed in range(options.seeds):
            for case, method in pairs:
                rate = best_rate(tuned.rows, case.name, method.name) or method.rates[0]
                yield job(case, method, seed, rate)


def _asked(options: Options, case: Case, method: Method) -> bool:
    usual = case.name == FIRST and (method.main or not options.quick)
    if not options.only:
        return usual or (method.others and not options.quick)
    named = case.name in options.only and (method.others or case.name == FIRST)
    return named or f"{case.name}/{method.name}" in options.only


def run(job: Job, options: Options, judges: dict[str, Judge]) -> dict[str, Any]:
    """Train once, draw where it counts, and return the line of the run."""
    case, method = job.case, job.method
    subject = case.open(job.seed, options.cache_dir, options.data_dir)
    loop = Loop(subject, method, rate=job.rate, steps=job.steps, batch=case.batch, seed=job.seed)
    result = loop.train(case.repeats)
    pictures = None
    drawn = options.quick or TUNING_SEED < job.seed <= options.picture_seeds
    if options.pictures and method.pictures and drawn:
        if case.name not in judges:
            judges[case.name] = Judge(subject)
        pictures = judges[case.name].score(subject)
    decisions = [{key: d[key] for key in ("stage", "choice")} for d in loop.growth.decisions]
    sizes = {"steps": job.steps, "batch": case.batch}
    return {**job.key, **sizes, **facts(job.seed), **asdict(result), "decisions": decisions, "pictures": pictures}


def check(options: Options) -> None:
    """Refuse names that are not known.

    Raises:
        CaseError: The message lists the known ones.
    """
    known = {name for case in CASES for name in (case, *(f"{case}/{method}" for method in METHODS))}
    wrong = sorted(set(options.only) - known)
    if wrong:
        raise CaseError(f"--only {wrong} is not known: use {list(CASES)}, or case/method with {list(METHODS)}.")
    if options.seeds < 1:
        raise CaseError(f"--seeds {options.seeds} is not allowed: use at least 1.")


def run_all(options: Options) -> None:
    """Every job whose line is missing."""
    judges: dict[str, Judge] = {}
    runs = Runs(options.results / "runs.jsonl")
    for job in jobs(options, runs):
        done = runs.one(**job.key) is not None
        if options.list:
            print(f"{'done' if done else 'todo'}  {job}, {job.steps} steps")
        elif not done:
            last = runs.add(run(job, options, judges))["curve"][-1]
            print(f"{job}: held-out loss {last['held_out_loss']:.4f}, {last['cpu']:.1f} CPU s", flush=True)


def write_summary(options: Options) -> None:
    """Print the table of all runs, and write the summary and the plot."""
    rows = Runs(options.results / "runs.jsonl").rows
    print_table(rows)
    save(options.results / "summary.json", summary(rows))
    if any(row["method"] == "full" for row in rows):
        draw(rows, options.results / "plot.png")
    print(f"written: {options.results / 'summary.json'}")


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    check(options)
    torch.set_num_threads(1)
    if options.quick and options.results == COMMITTED:
        options = replace(options, seeds=1, steps=options.steps or CASES[FIRST].steps // 2, results=QUICK)
    if not options.table:
        if options.pictures and not options.list:
            network()  # what judges pictures has to be there before anything trains
        run_all(options)
    if not options.list:
        write_summary(options)


if __name__ == "__main__":
    main()
