"""How soon does each method reach the quality that full fine-tuning ends with? Cases, methods, seeds, one file each.

    python benchmarks/time_to_quality.py --quick                            # one case, one seed: the table
    python benchmarks/time_to_quality.py --data_dir ../shared/data          # what is committed, 4 cases
    python benchmarks/time_to_quality.py --list --data_dir ../shared/data   # what is there and what is missing

Every method of a case runs in the same loop (ttq_loop.py) on the same batches: AdamW, 5 % warm-up, cosine to 0 within
its own schedule. Its learning rate is the best of a small grid on seed 0 of the case. Held-out emoji give the
quality: denoising loss with the same noise and times for all, then pictures (KID, agreement) at the end. Evaluations,
caches and FLOP counts are not on the clock, searches are. Every run leaves a file; a suite that is started again does
what is missing. Use one thread (OMP_NUM_THREADS=1): the clock is CPU time of the process.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro


os.environ.setdefault("TQDM_DISABLE", "1")

from common import RESULTS, facts
from ttq_cases import CASES, Case, CaseError
from ttq_loop import Loop
from ttq_methods import METHODS, Method
from ttq_quality import Judge
from ttq_table import TUNING_SEED, best_rate, clean, draw, load_results, print_table, summarise, summary

from autoprog_diffusion.files import write_text_atomically


COMMITTED = RESULTS / "time_to_quality"
FIRST = "sd_openmoji"  # the case that every method runs on
PLOTTED = (
    "full",
    "full_short",
    "full_quarter",
    "full_long",
    "full_stratified",
    "lora",
    "interleaved",
    "unfreeze",
    "freeze",
    "freeze_8",
)


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
        table: Print the table of the files that are there, write the summary and the plot, and stop.
        pictures: Draw pictures of the main methods' reported runs for KID and agreement.
        picture_seeds: How many seeds after the first have pictures; a score takes as long as the run.
        data_dir: Folder of emoji_styles_64.parquet, for `sd_noto`.
        results: Folder of the result files.
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

    def path(self, folder: Path) -> Path:
        """Its result file."""
        return folder / self.case.name / f"{self.method.name}-seed{self.seed}-rate{self.rate:g}.json"


def jobs(options: Options) -> Iterator[Job]:
    """Everything asked for, what matters most first; a tuned rate is read when it is due."""
    asked = [(c, m) for c in CASES.values() for m in METHODS.values() if _asked(options, c, m)]
    for pairs in ([p for p in asked if p[1].main], [p for p in asked if not p[1].main]):
        if not options.quick:
            yield from (_job(options, *pair, TUNING_SEED, rate) for pair in pairs for rate in pair[1].rates)
        for seed in range(options.seeds):
            yield from (_tuned(options, *pair, seed) for pair in pairs)


def _tuned(options: Options, case: Case, method: Method, seed: int) -> Job:
    # A quick run takes the rates that the committed runs were tuned to.
    runs = load_results(COMMITTED if options.quick else options.results)
    return _job(options, case, method, seed, best_rate(runs, case.name, method.name) or method.rates[0])


def _job(options: Options, case: Case, method: Method, seed: int, rate: float) -> Job:
    return Job(case, method, seed, rate, max(4, round((options.steps or case.steps) * method.share)))


def _asked(options: Options, case: Case, method: Method) -> bool:
    usual = case.name == FIRST and (method.main or not options.quick)
    if not options.only:
        return usual or (method.others and not options.quick)
    named = case.name in options.only and (method.others or case.name == FIRST)
    return named or f"{case.name}/{method.name}" in options.only


def run(job: Job, options: Options, judges: dict[str, Judge]) -> dict[str, Any]:
    """Train once, draw where it counts, and return what the file holds."""
    case, method = job.case, job.method
    subject = case.open(job.seed, options.cache_dir, options.data_dir)
    loop = Loop(subject, method, job.rate, job.steps, case.batch, job.seed)
    result = loop.train(case.repeats)
    pictures = None
    drawn = options.quick or TUNING_SEED < job.seed <= options.picture_seeds
    if options.pictures and method.pictures and drawn:
        if case.name not in judges:
            judges[case.name] = Judge(subject)
        pictures = judges[case.name].score(subject)
    settings = {"case": case.name, "method": method.name, "rate": job.rate, "steps": job.steps, "batch": case.batch}
    decisions = [{key: d[key] for key in ("stage", "choice")} for d in loop.growth.decisions]
    return {**settings, **facts(job.seed), **asdict(result), "decisions": decisions, "pictures": pictures}


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
    """Every job whose file is missing."""
    judges: dict[str, Judge] = {}
    for job in jobs(options):
        path = job.path(options.results)
        if options.list:
            print(f"{'done' if path.exists() else 'todo'}  {job.case.name}/{path.stem}, {job.steps} steps")
        elif not path.exists():
            values = run(job, options, judges)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(path, json.dumps(clean(values), indent=1) + "\n")
            last = values["curve"][-1]
            print(f"{path.stem}: held-out loss {last['held_out_loss']:.4f}, {last['cpu']:.1f} CPU s", flush=True)


def write_summary(options: Options) -> None:
    """Print the table of all result files, and write it and the plot beside their folder."""
    results = load_results(options.results)
    table = summarise(results)
    print_table(table)
    target = options.results.with_suffix(".json")
    write_text_atomically(target, json.dumps(summary(results), indent=1) + "\n")
    if table:
        draw(results, options.results.with_suffix(".png"), PLOTTED)
    print(f"written: {target}")


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    check(options)
    torch.set_num_threads(1)
    if options.quick and options.results == COMMITTED:
        folder = Path(tempfile.gettempdir()) / "time_to_quality_quick"
        options = replace(options, seeds=1, steps=options.steps or CASES[FIRST].steps // 2, results=folder)
    if not options.table:
        run_all(options)
    if options.list:
        return
    write_summary(options)


if __name__ == "__main__":
    main()
