"""A small study: tuned rates, reported seeds, and a table against full fine-tuning of the right length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from against import rows_against_full
from cases import Case
from common import Runs, check_names, print_rows, save
from methods import Method
from run import COMMITTED, Job, Options, run
from table import TUNING_SEED, best_rate


@dataclass(frozen=True)
class Arguments:
    """What to run.

    Attributes:
        only: Names of cases; none for all.
        table: Print the table of the runs that are there, and stop.
    """

    only: tuple[str, ...] = ()
    table: bool = False


@dataclass(frozen=True)
class Study:
    """Cases, methods and their rates.

    Attributes:
        name: Of its files: the single runs in `<name>.jsonl`, the table in `<name>.json`.
        title: Of the table.
        cases: What is trained, by name.
        seeds: The seeds of every case that are reported; seed 0 tunes.
        methods: By name; `full`, `full_short` and `full_quarter` are what the others are set against.
        tuned: Rates of the methods that seed 0 tunes.
        like: For every other method the tuned one whose rate it takes.
    """

    name: str
    title: str
    cases: Mapping[str, Case]
    seeds: Mapping[str, tuple[int, ...]]
    methods: Mapping[str, Method]
    tuned: Mapping[str, tuple[float, ...]]
    like: Mapping[str, str]

    def jobs(self, names: Sequence[str], runs: Runs) -> Iterator[Job]:
        """Every run; a tuned rate is read when it is due."""
        for name in names:
            case = self.cases[name]
            for method, rates in self.tuned.items():
                for rate in rates:
                    yield Job(case, self.methods[method], TUNING_SEED, rate, case.steps)
            for seed in self.seeds[name]:
                for method, settings in self.methods.items():
                    steps = round(case.steps * settings.share)
                    yield Job(case, settings, seed, self.rate_of(runs, name, method), steps)

    def rate_of(self, runs: Runs, case: str, method: str) -> float:
        """The rate that a method is reported with."""
        tuned = self.like.get(method, method)
        return best_rate(runs.rows, case, tuned) or self.tuned[tuned][0]

    def table(self, runs: Runs) -> list[dict[str, Any]]:
        """A row for every case and method, against full fine-tuning: means over the seeds with all of full's runs."""
        titles = {method: settings.title for method, settings in self.methods.items()}
        rows = []
        for name, case in self.cases.items():
            found: dict[str, list[dict[str, Any]]] = {method: [] for method in self.methods}
            for seed in self.seeds[name]:
                several = runs.all(case=name, seed=seed)
                reported = [row for row in several if row["rate"] == self.rate_of(runs, name, row["method"])]
                for row in rows_against_full({row["method"]: row for row in reported}, titles):
                    found[row["name"]].append(row)
            means = [averaged(several) for several in found.values() if several]
            rows += [{"case": case.title, **row} for row in means]
        return rows

    def run(self, arguments: Arguments) -> None:
        """The runs that are missing, then the table."""
        check_names(arguments.only, self.cases)
        runs = Runs(COMMITTED / f"{self.name}.jsonl")
        for job in [] if arguments.table else self.jobs(arguments.only or tuple(self.cases), runs):
            if runs.one(**job.key) is None:
                last = runs.add(run(job, Options(pictures=False), {}))["curve"][-1]
                print(f"{job}: held-out loss {last['held_out_loss']:.4f}, {last['cpu']:.1f} CPU s", flush=True)
        rows = self.table(runs)
        print_rows(self.title, rows)
        save(COMMITTED / f"{self.name}.json", {"rows": rows})


def averaged(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How many seeds a method's rows are of, and the means of their numbers."""
    numbers = {key: mean(row[key] for row in rows) for key, value in rows[0].items() if isinstance(value, float)}
    return {"seeds": len(rows), **rows[0], **numbers}
