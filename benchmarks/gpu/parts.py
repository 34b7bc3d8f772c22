"""Parts of the GPU's measurements, and their rows: what each asks, and how a row is measured."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import Runs, load_module
from device import total_memory, waiting_clock
from loads import BENCHMARKS, LOADS
from search import search_cost
from staged import budget_of, measure
from steps import LEVELS, Candidate, Steps, candidates
from steps import measure as measure_candidates
from ways import WAYS


Key = dict[str, str]
SEED = 0
ROUNDS, REPEATS, PAIRS = 2, 3, 20
QUALITY = ("sd_default", "dit_default", "flow_default")  # cases of early_stopping: whole runs of recipes
FIRST_WAYS = ("full", "full, all again", "late", "late, auto", "LoRA")  # of every model, before the others
DRY_WAYS = ("full", "late, auto", "window 1/8, all again, frozen nf4", "LoRA grown")


@dataclass(frozen=True)
class Context:
    """Where and how rows are measured.

    Attributes:
        device: The accelerator, or the CPU in a dry run.
        dry: Whether everything is tiny and short.
        runs: Rows that are there.
    """

    device: torch.device
    dry: bool
    runs: Runs


@dataclass(frozen=True)
class Part:
    """One question.

    Attributes:
        words: The question.
        rows: (whether it is a dry run) -> what to measure.
        measure: (key, context) -> the row's values.
        needs: (nothing) -> why it cannot be measured here, or None.
    """

    words: str
    rows: Callable[[bool], Iterator[Key]]
    measure: Callable[[Key, Context], dict[str, Any]]
    needs: Callable[[], str | None] = lambda: None


def stage_rows(dry: bool) -> Iterator[Key]:
    later = [way for way in WAYS if way not in FIRST_WAYS]
    for ways in (FIRST_WAYS, later):
        for model in LOADS:
            asked = [way for way in ways if not dry or model == "sd15" or way in DRY_WAYS]
            yield from ({"model": model, "way": way} for way in asked)


def measure_stages(key: Key, context: Context) -> dict[str, Any]:
    way = WAYS[key["way"]]
    budget = None
    if way.has_budget and "memory_gb" not in way.growth:
        full = context.runs.one(part="steps", model=key["model"], way="full")
        budget = budget_of(full, total_memory(context.device))
    return measure(LOADS[key["model"]], way, budget, context.device, dry=context.dry)


def few_model_rows(dry: bool) -> Iterator[Key]:
    return ({"model": model, "way": ""} for model in (("dit",) if dry else ("sd15", "sdxl", "dit")))


def steps_of(key: Key, context: Context) -> Steps:
    torch.manual_seed(SEED)
    load = LOADS[key["model"]]
    model = load.build(context.device, dry=context.dry)
    return Steps(model, load.inputs(model, context.device, dry=context.dry), autocast=True)


def measure_overhead(key: Key, context: Context) -> dict[str, Any]:
    overhead = load_module(BENCHMARKS / "overhead" / "run.py", "overhead_run")
    steps = steps_of(key, context)
    pairs = 2 if context.dry else PAIRS
    rows = overhead.measure(steps.model, steps.inputs, pairs, waiting_clock(context.device), autocast=True)
    return {"rows": rows}


def measure_search(key: Key, context: Context) -> dict[str, Any]:
    steps = steps_of(key, context)
    full = Candidate("full", candidates(steps.model)[0].blocks)
    (row,) = measure_candidates(steps, [full], 1, 1 if context.dry else REPEATS)
    found = search_cost(steps)
    return {**found, "full_step_s": row["step_s"], "of_full_steps": found["seconds"] / row["step_s"]}


def measure_orders(key: Key, context: Context) -> dict[str, Any]:
    steps = steps_of(key, context)
    levels = LEVELS[:1] if context.dry else LEVELS
    found = candidates(steps.model, LOADS[key["model"]].resolutions, levels)
    fits = [candidate for candidate in found if fits_in(steps, candidate)]
    if fits[:1] != found[:1]:
        return {"refused": "out of memory: full training, which the rest is compared with, does not fit"}
    counts = (1, 1) if context.dry else (ROUNDS, REPEATS)
    too_large = [candidate.name for candidate in found if candidate not in fits]
    return {"rows": measure_candidates(steps, fits, *counts), "too_large": too_large}


def fits_in(steps: Steps, candidate: Candidate) -> bool:
    """Whether a step of a candidate fits into memory."""
    try:
        with steps.at(candidate) as (optimizer, inputs):
            steps.gradients(inputs)
            optimizer.step()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


def quality_rows(dry: bool) -> Iterator[Key]:
    for case in QUALITY[:1] if dry else QUALITY:
        yield from ({"model": case, "way": way} for way in (("default",) if dry else ("full", "default")))


def measure_quality(key: Key, context: Context) -> dict[str, Any]:
    early = load_module(BENCHMARKS / "early_stopping" / "run.py", "early_stopping_run")
    flags = ["--growth", "off"] if key["way"] == "full" else []
    flags += ["--mixed_precision", "bf16"]
    if context.dry:
        flags += ["--max_train_steps", "4", "--max_train_samples", "64", "--train_batch_size", "2"]
        flags += ["--evaluation_steps", "2", "--no-cache_latents"]
    row = early.train(key["model"], "whole", SEED, flags)
    kept = ("steps", "curve", "curve_seconds", "best_loss", "last_loss", "training_seconds")
    return {name: row[name] for name in kept}


def against_rows(dry: bool) -> Iterator[Key]:
    ways = ("theirs", "ours") if dry else ("theirs", "ours", "no_growth", "no_cache")
    return ({"model": "sd15", "way": way} for way in ways)


def measure_against(key: Key, context: Context) -> dict[str, Any]:
    folder = BENCHMARKS / "against_diffusers"
    sys.path.insert(0, str(folder))
    run = load_module(folder / "run.py", "against_diffusers_run")
    name, steps = ("sd15_tiny", 8) if context.dry else ("sd15", 60)
    return run.train(name, key["way"], SEED, steps, all_cores=False)


def lacks_checkout() -> str | None:
    folder = os.environ.get("DIFFUSERS_CHECKOUT")
    if folder is not None and (Path(folder) / "examples").is_dir():
        return None
    return "set DIFFUSERS_CHECKOUT to a checkout of Diffusers' repository"


PARTS = {
    "steps": Part("step time and peak memory of every stage", stage_rows, measure_stages),
    "overhead": Part("what growth itself costs per step", few_model_rows, measure_overhead),
    "search": Part("what a decision of a zero-shot search costs", few_model_rows, measure_search),
    "orders": Part("orders and resolutions against their share of the FLOPs", few_model_rows, measure_orders),
    "quality": Part("held-out loss over time, of the recipes on their small models", quality_rows, measure_quality),
    "against_diffusers": Part(
        "a recipe against Diffusers' script, of an SD 1.5 with random weights",
        against_rows,
        measure_against,
        lacks_checkout,
    ),
}
