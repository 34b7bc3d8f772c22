"""What is the memory that freezing releases worth in time, at a budget that full fine-tuning meets by recomputation?

    OMP_NUM_THREADS=1 python benchmarks/equal_memory/run.py
    OMP_NUM_THREADS=1 python benchmarks/equal_memory/run.py --only DiT
    python benchmarks/equal_memory/run.py --only               # the summary of the rows that are there, anew

Budgets lie between what full fine-tuning takes with every block computed again and with none. Full fine-tuning and the
recipes' late freezing train within each, with gradient checkpointing everywhere (what a script switches on) and with
`checkpointing="auto"`. A step's time is CPU time of one thread; a run's is that of its stages, as long as they last.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any


HERE = Path(__file__).parent
BENCHMARKS = HERE.parent
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "memory")]  # the modules that all benchmarks share, and the models

import torch
from common import facts, load, print_rows, save
from medium import MEDIUM
from stage_runs import FULL, StagedRun, staged_run

from autoprog_diffusion import GrowthConfig
from autoprog_diffusion.growth.errors import ConfigError


NAMES = ("UNet", "DiT", "SD3")
SHARES = (0.0, 0.25, 0.5, 0.75)  # of the way from the least memory to the most
STEPS = 3  # of a stage that are timed; the median counts
ROOM = 1.001  # of a budget: bytes are predicted
GB = 1e9
SUMMARY = HERE / "summary.json"


@dataclass(frozen=True)
class Way:
    """A way to train within a budget.

    Attributes:
        name: In tables.
        freezes: Whether blocks freeze, or all train for the whole run.
        checkpointing: As of `GrowthConfig`.
    """

    name: str
    freezes: bool
    checkpointing: str


ALL = Way("full, all computed again", freezes=False, checkpointing="all")
WAYS = (
    Way("full, auto", freezes=False, checkpointing="auto"),
    Way("late freezing, auto", freezes=True, checkpointing="auto"),
)
FROZEN_ALL = Way("late freezing, all computed again", freezes=True, checkpointing="all")


def step(trained: StagedRun) -> float:
    """A training step, and its CPU time."""
    begin = time.process_time()
    trained.step()
    took = time.process_time() - begin
    trained.growth.step()
    return took


def subject(name: str, way: Way, budget: float | None) -> StagedRun:
    """A model that is ready to train.

    Args:
        name: Of the model.
        way: How it trains.
        budget: In 10^9 bytes, for a way that has one.
    """
    torch.manual_seed(0)
    medium = MEDIUM[name]
    model: Any = medium.build().train()
    settings: dict[str, Any] = {"checkpointing": way.checkpointing}
    if budget is not None:
        settings["memory_gb"] = budget
    config = GrowthConfig.for_model(model, **settings) if way.freezes else GrowthConfig(**FULL, **settings)
    return staged_run(
        model,
        medium.inputs(model.config),
        config,
        steps=STEPS + 1,
        make_optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-5),
    )


def run(name: str, way: Way, budget: float | None = None) -> dict[str, Any]:
    """Seconds of a step on average over a run, and what its stages compute again.

    Args:
        name: Of the model.
        way: How it trains.
        budget: In 10^9 bytes.
    """
    trained = subject(name, way, budget)
    seconds = []
    recomputed = []
    for _ in trained.shares:
        step(trained)  # the first step of a stage measures
        recomputed.append(len(trained.growth.history[-1].recomputed or ()))
        seconds.append(median(step(trained) for _ in range(STEPS)))
    return {
        "seconds": sum(share * took for share, took in zip(trained.shares, seconds, strict=True)),
        "stage_seconds": seconds,
        "recomputed": recomputed,
    }


def limits(name: str) -> tuple[float, float]:
    """Least and most bytes that full fine-tuning takes, in 10^9: every block computed again, and none."""
    trained = subject(name, WAYS[0], 1e3)
    step(trained)
    memory: Any = trained.growth.history[-1].memory
    most = sum(memory[key] for key in ("weights", "gradients", "optimizer", "activations"))
    trained = subject(name, WAYS[0], 1e-6)
    try:
        step(trained)
    except ConfigError as error:  # its message has the smallest budget that is enough
        least = re.search(r"enough is ([\d.]+\d)", str(error))
    return float(least[1]), most / GB


def rows_of(name: str) -> Iterator[dict[str, Any]]:
    """A row for every budget and way.

    Args:
        name: Of the model.
    """
    least, most = limits(name)
    base = run(name, ALL)
    frozen = run(name, FROZEN_ALL)
    for share in SHARES:
        budget = ROOM * (least + share * (most - least))
        found = {ALL.name: base, FROZEN_ALL.name: frozen, **{way.name: run(name, way, budget) for way in WAYS}}
        for way, row in found.items():
            yield {
                "model": name,
                "share": share,
                "budget_gb": budget,
                "way": way,
                "faster": base["seconds"] / row["seconds"],
                **row,
            }


def draw(rows: list[dict[str, Any]]) -> None:
    """How many times as fast as full fine-tuning that computes everything again, over the budget."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["model"] for row in rows))
    size = (1 + 2.7 * len(names), 3.4)
    figure, (panels,) = plt.subplots(1, len(names), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, name in zip(panels, names, strict=True):
        for way in (FROZEN_ALL, *WAYS):
            own = [row for row in rows if (row["model"], row["way"]) == (name, way.name)]
            axes.plot([row["share"] for row in own], [row["faster"] for row in own], "o-", label=way.name)
        axes.axhline(1.0, color="grey", linewidth=1)
        axes.set_title(name)
    figure.supxlabel("budget: 0 fits only with every block computed again, 1 with none", fontsize=9)
    panels[0].set_ylabel("times as fast as full, all again")
    panels[0].legend(fontsize=7)
    figure.savefig(HERE / "plot.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES, help="models")
    args = parser.parse_args()
    before = load(SUMMARY)
    rows = [row for row in before.get("rows", []) if row["model"] not in args.only]
    for name in args.only:
        rows += rows_of(name)
        print_rows("Times as fast as full, all computed again", table(rows))
    rows.sort(key=lambda row: NAMES.index(row["model"]))
    measured = facts(0) if args.only else before
    save(SUMMARY, {**measured, "rows": rows, "table": table(rows), "best": best(table(rows))})
    draw(rows)


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every model and budget: how many times as fast each way is as full that computes everything again."""
    found = []
    for name in NAMES:
        for share in SHARES:
            own = {row["way"]: row for row in rows if (row["model"], row["share"]) == (name, share)}
            if not own:
                continue
            full, frozen = (own[way.name] for way in WAYS)
            found.append(
                {
                    "model": name,
                    "share_percent": 100 * share,
                    "budget_gb": full["budget_gb"],
                    "frozen_all": own[FROZEN_ALL.name]["faster"],
                    "full_auto": full["faster"],
                    "frozen_auto": frozen["faster"],
                    "against_full_auto": full["seconds"] / frozen["seconds"],
                }
            )
    return found


def best(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Model -> how many times as fast late freezing with `auto` is over all budgets, at least and at most."""
    found = {}
    for name in {row["model"]: None for row in rows}:
        own = [row for row in rows if row["model"] == name]
        faster = [row["frozen_auto"] for row in own]
        against = [row["against_full_auto"] for row in own]
        found[name] = {
            "least": min(faster),
            "most": max(faster),
            "least_against_auto": min(against),
            "most_against_auto": max(against),
        }
    return found


if __name__ == "__main__":
    main()
