"""Results of a run to look at: growth.json, the timeline picture and the summary table."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import autoprog_diffusion
from autoprog_diffusion.files import write_text_atomically
from autoprog_diffusion.growth.protocol import Growth

from .metrics import Metrics, StageSummary, fullest, saving


# Numbers that searches give their candidates: what a candidate costs, its scores, and their sum, lowest first.
SCORES = ("loss", "cost", "kappa", "zico", "gain", "score", "value")
MOST_CANDIDATES = 6


def write_report(folder: Path, growth: Growth, metrics: Metrics, seconds: dict[str, float]) -> None:
    """Write `growth.json` and `timeline.png`, and print the summary table.

    Args:
        folder: The run's output folder.
        growth: The growth object after the last step.
        metrics: Metrics of the whole run.
        seconds: Wall time of the run's phases, by name.
    """
    write_growth_json(folder / "growth.json", growth, metrics, seconds)
    draw_timeline(folder / "timeline.png", metrics)
    for decision in growth.decisions:
        print_decision(decision)
    print_summary(metrics, growth.plan.num_blocks, seconds)


def write_growth_json(path: Path, growth: Growth, metrics: Metrics, seconds: dict[str, float]) -> None:
    """Write plan, configuration, history and measurements; `GrowthPlan.load` reads the plan back from it."""
    summaries = metrics.summaries()
    values: dict[str, Any] = {
        "plan": growth.plan.to_dict(),
        "config": growth.config.to_dict(),
        "decisions": growth.decisions,
        "history": [record.to_dict() for record in growth.history],
        "stages": [asdict(summary) for summary in summaries],
        "saving_against_full": saving(summaries),
        "validations": metrics.validations,
        "seconds": seconds,
        "training_cpu_seconds": metrics.total("cpu_seconds"),
        "training_flops": metrics.total("flops"),
        "versions": {"autoprog_diffusion": autoprog_diffusion.__version__, "torch": torch.__version__},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "command": sys.argv,
    }
    write_text_atomically(path, json.dumps(values, indent=2) + "\n")


def print_summary(metrics: Metrics, num_blocks: int, seconds: dict[str, float]) -> None:
    """Print one row per stage and search, the saving against full training, and the accuracy if it was measured."""
    summaries = metrics.summaries()
    full = fullest(summaries)
    table = Table(title="progressive training, stage by stage")
    titles = ("stage", "steps", "blocks", "trains", "pixels", "loss", "step", "of full", "FLOPs of full", "memory")
    for title in titles:
        table.add_column(title, justify="right")
    for row in summaries:
        table.add_row(
            f"{row.stage + 1}{' search' if row.searching else ''}",
            f"{row.steps}",
            f"{row.blocks:.3g}/{num_blocks}",
            f"{row.trainable:.0%}",
            f"{row.resolution:.4g}",
            f"{row.loss:.4f}",
            f"{1000 * row.step_seconds:.1f} ms",
            f"{row.step_seconds / full.step_seconds:.0%}",
            f"{row.flops / full.flops:.0%}",
            f"{row.memory / 2**20:,.0f} MiB",
        )
    console = _console()
    console.print(table)
    console.print(saving_sentence(summaries))
    if metrics.validations:
        result = metrics.validations[-1]
        console.print(f"validation accuracy {result['accuracy']:.1%}, of the average {result['ema_accuracy']:.1%}.")
    console.print("wall time: " + ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))


def saving_sentence(summaries: list[StageSummary]) -> str:
    """What the run saved, in one sentence."""
    parts = []
    ratios = saving(summaries)
    for cost, fewer in (("flops", "fewer FLOPs"), ("time", "less time")):
        share = 1 - 1 / ratios[cost]
        words = fewer if share >= 0 else f"more {fewer.split()[-1]}"
        parts.append(f"{abs(share):.0%} {words}")
    return f"{' and '.join(parts)} than as many steps of full training (stage {fullest(summaries).stage + 1})."


def print_decision(decision: dict[str, Any]) -> None:
    """Print the best candidates of one search: their scores, their cost, and which was chosen."""
    rows = decision["candidates"]
    if "value" in rows[0]:
        rows = sorted(rows, key=lambda row: float(row["value"]))
    most_expensive = max(float(row.get("cost", 0.0)) for row in rows) or 1.0
    scores = [name for name in SCORES if name in rows[0]]
    seconds = f"{decision['seconds']:.1f} s" if "seconds" in decision else ""
    method = decision.get("objective") or decision.get("search", "")
    table = Table(title=f"search for stage {decision['stage'] + 1} ({method}, {seconds})")
    for name in ("candidate", "blocks", "pixels", *scores, ""):
        table.add_column(name, justify="right")
    for row in rows[:MOST_CANDIDATES]:
        numbers = {name: f"{float(row[name]):.4g}" for name in scores}
        if "cost" in numbers:
            numbers["cost"] = f"{float(row['cost']) / most_expensive:.0%}"
        blocks = row["depth"] if "depth" in row else len(row["blocks"])
        mark = "chosen" if is_chosen(decision, row) else ""
        table.add_row(str(row.get("name", "")), str(blocks), str(row.get("resolution", "")), *numbers.values(), mark)
    if len(rows) > MOST_CANDIDATES:
        table.caption = f"{len(rows) - MOST_CANDIDATES} more in growth.json"
    _console().print(table)


def is_chosen(decision: dict[str, Any], candidate: dict[str, Any]) -> bool:
    """Whether a search decided for this candidate, which it names, or tells by depth and resolution."""
    if "name" in candidate:
        return candidate["name"] == decision["choice"]
    depth = candidate.get("depth", len(candidate.get("blocks", ())))
    return {"depth": depth, "resolution": candidate["resolution"]} == decision["choice"]


def draw_timeline(path: Path, metrics: Metrics) -> None:
    """Draw loss, trainable share, resolution, step time and, if measured, accuracy over the optimizer steps.

    Stages are shaded, searches darker.
    """
    from matplotlib.figure import Figure

    validated = bool(metrics.validations)
    figure = Figure(figsize=(9, 7 + validated), dpi=110)
    heights = [2, 1, 1, 1] + [1.5] * validated
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    rows = metrics.rows
    steps = range(1, len(metrics) + 1)
    axes[0].plot(steps, rows["loss"], color="0.8", linewidth=0.6, label="loss")
    axes[0].plot(steps, smooth(rows["loss"]), color="C0", label="smoothed")
    axes[0].set(ylabel="loss", yscale="log")
    axes[0].legend(loc="upper right", fontsize=8)
    axes[1].step(steps, [100 * value for value in rows["trainable"]], color="C2", where="mid")
    axes[1].set(ylabel="trains (%)", ylim=(0, 105))
    axes[2].step(steps, rows["resolution"], color="C4", where="mid")
    axes[2].set(ylabel="pixels", ylim=(0, 1.15 * max(rows["resolution"])))
    times = [1000 * value for value in rows["seconds"]]
    # The slowest tenth, evaluations and first steps, may lie outside the picture.
    axes[3].plot(steps, times, ".", color="0.8", markersize=2)
    axes[3].set(ylabel="step (ms)", ylim=(0, 1.6 * sorted(times)[len(times) * 9 // 10]))
    if validated:
        _draw_accuracy(axes[4], metrics.validations)
    start = 0
    for row in metrics.summaries():
        end = start + row.steps
        _shade(axes, row, start, end)
        start = end
    axes[-1].set(xlabel="optimizer step", xlim=(0, start))
    figure.align_ylabels()
    figure.tight_layout()
    figure.savefig(path)


def smooth(values: Iterable[float], weight: float = 0.98) -> list[float]:
    """Exponential moving average, corrected for its start.

    Example:
        >>> [round(value, 6) for value in smooth([2.0, 2.0, 2.0])]
        [2.0, 2.0, 2.0]
    """
    result = []
    total = 0.0
    norm = 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        result.append(total / norm)
    return result


def _draw_accuracy(axis: Any, validations: list[dict[str, float]]) -> None:
    steps = [row["step"] for row in validations]
    for name, label in (("accuracy", "raw weights"), ("ema_accuracy", "average")):
        axis.plot(steps, [100 * row[name] for row in validations], ".-", label=label)
    axis.set(ylabel="accuracy (%)", ylim=(0, None))
    axis.legend(loc="lower right", fontsize=8)


def _shade(axes: Any, row: StageSummary, start: int, end: int) -> None:
    for axis in axes:
        alpha = 0.14 if row.searching else 0.07
        axis.axvspan(start, end, color=f"C{row.stage % 10}", alpha=alpha, linewidth=0)
    if row.searching:
        return
    axes[3].plot([start, end], [1000 * row.step_seconds] * 2, color="C3", linewidth=2)
    middle = ((start + end) / 2, 1.02)
    axes[0].annotate(f"stage {row.stage + 1}", middle, xycoords=("data", "axes fraction"), ha="center", fontsize=9)


def _console() -> Console:
    return Console(width=110 if not sys.stdout.isatty() else None)
