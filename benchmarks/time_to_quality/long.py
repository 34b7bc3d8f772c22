"""Do the gains hold in longer runs? The main methods on two cases with 640 and 2,560 steps.

    OMP_NUM_THREADS=1 python benchmarks/time_to_quality/long.py           # the runs that are missing, then the table
    python benchmarks/time_to_quality/long.py --table                     # the table of the runs that are there

The rates of full fine-tuning and of the averages are tuned on seed 0 with 640 steps, and the other methods keep what
seed 0 chose in 160 steps. Seed 1 is reported. Every run leaves a line in long.jsonl.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from against import rows_against_full
from cases import CASES
from common import Runs, print_rows, save
from methods import METHODS
from run import COMMITTED, Job, Options, run
from table import TUNING_SEED, best_rate


SEED = 1
LENGTHS = (640, 2560)
TUNED = ("full", "late_average", "full_average")  # with as many steps as the first length
GRID = (2.5e-4, 5e-4)
CHOSEN = ("full", "full_short", "full_quarter", "full_average", "late_average", "freeze_8_average")
OF_LENGTH = {2560: CHOSEN[:5]}
PLACES = ("dit_classes", "sd_openmoji")


@dataclass(frozen=True)
class Arguments:
    """What to run.

    Attributes:
        table: Print the table of the runs that are there, and stop.
        lengths: Optimizer steps of the full schedules.
    """

    table: bool = False
    lengths: tuple[int, ...] = LENGTHS


def jobs(lengths: tuple[int, ...], runs: Runs) -> Iterator[tuple[int, Job]]:
    """Every run, with the steps of its full schedule; a tuned rate is read when it is due."""
    for name in PLACES:
        for method in TUNED:
            for rate in GRID:
                yield LENGTHS[0], Job(CASES[name], METHODS[method], TUNING_SEED, rate, LENGTHS[0])
    for length in lengths:
        for name in PLACES:
            for method in OF_LENGTH.get(length, CHOSEN):
                steps = round(length * METHODS[method].share)
                yield length, Job(CASES[name], METHODS[method], SEED, rate_of(runs, name, method), steps)


def rate_of(runs: Runs, case: str, method: str) -> float:
    """The rate that a method is reported with."""
    shorter = Runs(COMMITTED / "runs.jsonl").rows
    return best_rate(runs.rows, case, method) or best_rate(shorter, case, method) or METHODS[method].rates[0]


def table(runs: Runs) -> list[dict[str, Any]]:
    """A row for every length, case and method, against full fine-tuning of the same length."""
    rows = []
    for length in LENGTHS:
        for name in PLACES:
            rates = {method: rate_of(runs, name, method) for method in CHOSEN}
            reported = runs.all(case=name, of_steps=length, seed=SEED)
            found = {row["method"]: row for row in reported if row["rate"] == rates[row["method"]]}
            titles = {method: METHODS[method].title for method in found}
            rows += [
                {"of_steps": length, "case": CASES[name].title, **row} for row in rows_against_full(found, titles)
            ]
    return rows


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    runs = Runs(COMMITTED / "long.jsonl")
    for length, job in [] if arguments.table else jobs(arguments.lengths, runs):
        if runs.one(**job.key, of_steps=length) is None:
            row = run(job, Options(pictures=False), {})
            runs.add({**row, "of_steps": length, "command": " ".join(["python", *sys.argv])})
    rows = table(runs)
    print_rows("longer runs", rows)
    save(Path(__file__).with_name("long.json"), {"rows": rows})


if __name__ == "__main__":
    main()
