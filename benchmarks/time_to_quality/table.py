"""From runs to numbers: time to quality against full fine-tuning, with intervals over seeds, and the plot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import linear_regression, mean
from typing import Any

from cases import CASES
from common import interval, print_rows
from methods import METHODS


TUNING_SEED = 0
# Full fine-tuning with schedules of several lengths: what anyone can do who wants it sooner.
SCHEDULES = ("full", "full_short", "full_quarter")
PLOTTED = (*SCHEDULES, "full_long", "full_stratified", "lora", "interleaved", "unfreeze", "freeze", "freeze_8")
FIRST = "sd_openmoji"  # the case that every method runs on
# What takes less memory than full fine-tuning in float32, and what it has to beat.
FITTING = (
    "full",
    "full_short",
    "lora",
    "lisa",
    "full_autocast",
    "full_8bit",
    "full_8bit_bf16",
    "full_4bit_bf16",
    "freeze_8",
    "freeze_8_float8",
    "freeze_8_int8",
    "freeze_8_nf4",
    "freeze_8_autocast",
    "freeze_8_bf16",
    "window_2",
    "window_2_float8",
    "window_4",
    "window_4_embedders",
    "window_4_overlap",
    "window_4_parked",
    "window_4_long",
    "window_8",
    "window_8_long",
)
# What the defaults are made of, alone and together, and the same for full fine-tuning.
STACK = (
    "full",
    "full_double",
    "full_long",
    "full_stratified",
    "full_average",
    "full_average_stratified",
    "full_average_small",
    "freeze_8",
    "freeze_8_average",
    "late_average",
    "later_average",
    "late_average_frozen",
    "late_average_small",
    "late_average_small_stratified",
    "late_average_quarter",
    "lora",
    "lora_average",
    "lora_late_average",
)
LATER = frozenset(name for name in STACK if "average" in name or name == "full_double")
Row = dict[str, Any]


def best_rate(results: Iterable[Row], case: str, method: str) -> float | None:
    """The learning rate of the lowest final held-out loss on the tuning seed of a case; None before there is one."""
    runs = [row for row in results if (row["case"], row["method"], row["seed"]) == (case, method, TUNING_SEED)]
    return min(((_final(row), row["rate"]) for row in runs), default=(0.0, None))[1]


def reached(curve: Sequence[Mapping[str, float]], target: float, axis: str) -> float | None:
    """Cost at which a curve first comes down to a loss, between evaluations linearly; None where it never does."""
    for before, after in zip(curve, curve[1:]):
        if after["held_out_loss"] <= target:
            drop = before["held_out_loss"] - after["held_out_loss"]
            part = 1.0 if drop <= 0 else (before["held_out_loss"] - target) / drop
            return before[axis] + max(0.0, part) * (after[axis] - before[axis])
    return None


def ratio_interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean and its 95 % interval, by t on the logarithms."""
    middle, low, high = interval([math.log(ratio) for ratio in ratios])
    return math.exp(middle), math.exp(low), math.exp(high)


def needed_by_full(schedules: Sequence[tuple[float, float]], loss: float) -> float:
    """Cost of a full run of the right length that ends at a loss, by the power law through runs of several lengths.

    Args:
        schedules: (cost, final loss) of at least two full runs, each with its own decay.
        loss: What is to be reached.
    """
    costs, losses = ([math.log(value) for value in column] for column in zip(*schedules))
    slope, offset = linear_regression(losses, costs)
    return math.exp(offset + slope * math.log(loss))


def steady_cpu(row: Row) -> float:
    """CPU seconds of a run, every step taken at the median of its stage: a neighbour's burst does not count."""
    return sum(stage["steps"] * stage["cpu_per_step"] for stage in row["stages"]) + row["search_cpu"]


def same_pace(results: Sequence[Row]) -> list[Row]:
    """All runs in the seconds of the first ones: the machine was a quarter faster when the averages were measured.

    What they took is scaled, by case and seed, so that a FLOP of `full_average` takes what one of `full` took. The
    cost of the average itself, 1 % of a step, goes with it.
    """
    factors = {}
    for case in CASES:
        runs = {name: chosen(results, case, name) for name in ("full", "full_average")}
        for seed in {row["seed"] for row in results if row["case"] == case}:
            # A seed with a run of one kind only is scaled as all seeds are.
            alone = {name: _pace([row for row in rows if row["seed"] == seed]) for name, rows in runs.items()}
            paces = alone if all(alone.values()) else {name: _pace(rows) for name, rows in runs.items()}
            factors[case, seed] = paces["full"] / paces["full_average"] if all(paces.values()) else 1.0
    return [_scaled(row, factors[row["case"], row["seed"]]) if row["method"] in LATER else row for row in results]


def _pace(runs: Sequence[Row]) -> float:
    """CPU seconds per FLOP; 0 without runs."""
    return sum(map(steady_cpu, runs)) / sum(row["curve"][-1]["flops"] for row in runs) if runs else 0.0


def _scaled(row: Row, factor: float) -> Row:
    curve = [{**point, "cpu": factor * point["cpu"]} for point in row["curve"]]
    stages = [{**stage, "cpu_per_step": factor * stage["cpu_per_step"]} for stage in row["stages"]]
    return {**row, "curve": curve, "stages": stages, "search_cpu": factor * row["search_cpu"]}


def chosen(results: Sequence[Row], case: str, method: str) -> list[Row]:
    """Runs of a case at the tuned rate, by seed."""
    runs = [row for row in results if (row["case"], row["method"]) == (case, method)]
    if runs and len({row["rate"] for row in runs}) > 1:
        rate = best_rate(results, case, method)
        runs = [row for row in runs if row["rate"] == rate]
    return sorted(runs, key=lambda row: row["seed"])


def summarise(results: Sequence[Row]) -> list[Row]:
    """One flat row per case and method: ratios against full fine-tuning of the same seed, final loss, pictures."""
    results = same_pace(results)
    table = []
    for case in CASES:
        full = {row["seed"]: row for row in chosen(results, case, "full")}
        lengths = [row for name in SCHEDULES for row in chosen(results, case, name)]
        for method in METHODS:
            runs = [row for row in chosen(results, case, method) if row["seed"] in full]
            if runs:
                row = _row(case, method, runs, [full[row["seed"]] for row in runs])
                table.append({**row, **_against_schedules(runs, lengths)})
    return table


def _row(case: str, method: str, runs: Sequence[Row], full: Sequence[Row]) -> Row:
    row: Row = {"case": case, "method": METHODS[method].title, "name": method, "rate": runs[0]["rate"]}
    row["seeds"] = len(runs)
    for axis in ("cpu", "flops"):
        pairs = [(_total(f, axis), _cost(r, _final(f), axis)) for r, f in zip(runs, full)]
        ratios = [total / cost for total, cost in pairs if cost is not None]
        row[f"reached_{axis}"] = len(ratios)
        middle, low, high = ratio_interval(ratios) if ratios else (0.0, math.nan, math.nan)
        row |= {f"{axis}_ratio": middle, f"{axis}_low": low, f"{axis}_high": high}
        row[f"{axis}_text"] = _text(middle, low, high, len(ratios), len(runs))
        row[f"{axis}_percent"] = mean(100 * _total(r, axis) / _total(f, axis) for r, f in zip(runs, full))
    finals = [_final(r) for r in runs]
    excess = interval([100 * (_final(r) / _final(f) - 1) for r, f in zip(runs, full)])
    row["loss"] = mean(finals)
    row |= {"excess": excess[0], "excess_low": excess[1], "excess_high": excess[2]}
    row["excess_text"] = f"{excess[0]:+.1f} %" + (f" ({excess[1]:+.1f} to {excess[2]:+.1f})" if len(runs) > 1 else "")
    for key in ("kid", "kid_rounded", "agreement"):
        values = [r["pictures"][key] for r in runs if r.get("pictures")]
        row[key] = mean(values) if values else None
        digits = 2 if key == "agreement" else 0
        row[f"{key}_text"] = "-" if not values else _plain(values, digits)
    return row


def _against_schedules(runs: Sequence[Row], lengths: Sequence[Row]) -> Row:
    """How many times its FLOPs a full schedule of the right length needs for the same final loss, seed by seed."""
    ratios = []
    for run in runs:
        same = [(_total(row, "flops"), _final(row)) for row in lengths if row["seed"] == run["seed"]]
        if len(same) == len(SCHEDULES):
            ratios.append(needed_by_full(same, _final(run)) / _total(run, "flops"))
    middle, low, high = ratio_interval(ratios) if ratios else (math.nan,) * 3
    text = _text(middle, low, high, len(ratios), len(ratios)) if ratios else "-"
    return {"schedules_ratio": middle, "schedules_low": low, "schedules_high": high, "schedules_text": text}


def _final(row: Row) -> float:
    return row["curve"][-1]["held_out_loss"]


def _total(row: Row, axis: str) -> float:
    return steady_cpu(row) if axis == "cpu" else row["curve"][-1][axis]


def _cost(row: Row, target: float, axis: str) -> float | None:
    """Cost to the target; CPU seconds are scaled to the steady ones of the run."""
    cost = reached(row["curve"], target, axis)
    return cost if cost is None or axis != "cpu" else cost * steady_cpu(row) / row["curve"][-1]["cpu"]


def _text(middle: float, low: float, high: float, hits: int, runs: int) -> str:
    if not hits:
        return "not reached"
    some = "" if hits == runs else f", {hits} of {runs} seeds"
    return f"{middle:.2f}x" + ("" if math.isnan(low) else f" ({low:.2f} to {high:.2f})") + some


def _plain(values: Sequence[float], digits: int) -> str:
    middle, low, high = interval(values)
    return f"{middle:.{digits}f}" + ("" if math.isnan(low) else f" ({low:.{digits}f} to {high:.{digits}f})")


def by_case(table: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of every case that has some, and `across`, one row per method with a column per case."""
    cases = {case: rows for case in CASES if (rows := [row for row in table if row["case"] == case])}
    return {**cases, "across": across(table)}


def stage_embedding(results: Sequence[Row]) -> list[Row]:
    """Final loss of the paper's schedule under each stage embedding, at one rate and seed."""
    same = {"case": "sd_openmoji", "seed": TUNING_SEED, "rate": 5e-4}
    titles = {
        "interleaved": "none",
        "interleaved_sid": "starts at zero, no dropout (ours)",
        "interleaved_sid_dropout": "normal, dropout 0.1 (the paper's)",
    }
    runs = {row["method"]: row for row in results if all(row[key] == value for key, value in same.items())}
    return [{"method": title, "loss": _final(runs[name])} for name, title in titles.items() if name in runs]


def fits(table: Sequence[Row]) -> list[Row]:
    """The methods that take less memory, and what they are measured against, in the first case."""
    found = {row["name"]: row for row in table if row["case"] == FIRST}
    return [found[name] for name in FITTING if name in found]


def across(table: Sequence[Row]) -> list[Row]:
    """One row per method: per case the FLOPs of a full run of equal loss, the CPU time, and the final loss."""
    formats = {"schedules_ratio": "{:.2f}", "cpu_percent": "{:.0f} %", "excess": "{:+.1f} %"}
    found = {(row["name"], row["case"]): row for row in table}
    rows = []
    for name in dict.fromkeys(row["name"] for row in table):
        row: Row = {"name": name, "method": METHODS[name].title}
        for case in CASES:
            values = found.get((name, case), {})
            for key, layout in formats.items():
                row[f"{case}_{key}"] = layout.format(values[key]) if key in values else "-"
        rows.append(row)
    return rows


def stack(results: Sequence[Row]) -> list[Row]:
    """What every ingredient is worth on seeds that no rate was tuned on, a row per method and columns per case.

    `flops` is how many times the FLOPs of a method a cosine run of full fine-tuning of the right length needs for the
    same loss. `cpu` is the same of CPU time, for the methods with an average, which were run in the same hours: a FLOP
    of full fine-tuning takes the time that it takes in `full_average`.
    """
    rows = []
    for name in STACK:
        row: Row = {"name": name, "method": METHODS[name].title}
        for case in CASES:
            row |= _stack_cells(results, case, name)
        if any(row[f"{case}_flops"] != "-" for case in CASES):
            rows.append(row)
    return rows


def _stack_cells(results: Sequence[Row], case: str, name: str) -> Row:
    lengths = [row for each in SCHEDULES for row in chosen(results, case, each)]
    full = {row["seed"]: row for row in chosen(results, case, "full")}
    paces = {row["seed"]: _total(row, "cpu") / _total(row, "flops") for row in chosen(results, case, "full_average")}
    flops, cpu, excess = [], [], []
    for run in chosen(results, case, name):
        seed = run["seed"]
        same = [(_total(row, "flops"), _final(row)) for row in lengths if row["seed"] == seed]
        if seed == TUNING_SEED or len(same) < len(SCHEDULES):
            continue
        needed = needed_by_full(same, _final(run))
        flops.append(needed / _total(run, "flops"))
        excess.append(100 * (_final(run) / _final(full[seed]) - 1))
        if seed in paces and "average" in name:
            cpu.append(needed * paces[seed] / _total(run, "cpu"))
    middle = {
        "flops": _geometric(flops),
        "cpu": _geometric(cpu),
        "excess": f"{mean(excess):+.1f} %" if excess else "-",
    }
    cells: Row = {f"{case}_{key}": value for key, value in middle.items()}
    return {**cells, f"{case}_seeds": len(flops), f"{case}_each": flops}


def _geometric(ratios: Sequence[float]) -> str:
    return f"{ratio_interval(ratios)[0]:.2f}x" if ratios else "-"


def summary(results: Sequence[Row]) -> dict[str, list[Row]]:
    """All that summary.json holds."""
    table = summarise(results)
    return {
        **by_case(table),
        "stage_embedding": stage_embedding(results),
        "fits": fits(table),
        "stack": stack(results),
    }


def print_table(results: Sequence[Row]) -> None:
    """The summary as a table per case."""
    heads = {
        "method": "method",
        "rate": "rate",
        "seeds": "seeds",
        "cpu_text": "time to quality",
        "flops_text": "in FLOPs",
        "cpu_percent": "CPU, % of full",
        "schedules_text": "at equal loss",
        "excess_text": "final loss",
        "kid_rounded_text": "KID",
        "agreement_text": "agree",
    }
    table = summarise(results)
    for case in dict.fromkeys(row["case"] for row in table):
        rows = [{head: row[key] for key, head in heads.items()} for row in table if row["case"] == case]
        print_rows(CASES[case].title, rows)
