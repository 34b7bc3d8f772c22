"""What a pretraining run leaves to look at: growth.json, the timeline picture and the summary table."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import autoprog_diffusion
from autoprog_diffusion.files import write_text_atomically
from autoprog_diffusion.training.smoothing import smooth

from .runlog import RunLog, StageSummary, fullest, saving


def write_report(folder: Path, growth: Any, log: RunLog, seconds: dict[str, float]) -> None:
    """Write `growth.json` and `timeline.png`, and print the summary table.

    Args:
        folder: The run's output folder.
        growth: After the last step.
        log: Of the whole run.
        seconds: Wall time of the run's phases, by name.
    """
    summaries = log.summaries()
    write_growth_json(folder / "growth.json", growth, log, seconds)
    for decision in growth.decisions:
        print_decision(decision)
    draw_timeline(folder / "timeline.png", log)
    print_summary(summaries, log.validations[-1] if log.validations else {}, seconds)


def write_growth_json(path: Path, growth: Any, log: RunLog, seconds: dict[str, float]) -> None:
    """Write plan, configuration, decisions, history, measurements and accuracies."""
    summaries = log.summaries()
    values: dict[str, Any] = {
        "plan": growth.plan.to_dict(),
        "config": growth.config.to_dict(),
        "decisions": growth.decisions,
        "history": [record.to_dict() for record in growth.history],
        "stages": [asdict(summary) for summary in summaries],
        "saving_against_full": saving(summaries),
        "validations": log.validations,
        "seconds": seconds,
        "training_cpu_seconds": log.total("cpu_seconds"),
        "training_flops": log.total("flops"),
        "versions": {"autoprog_diffusion": autoprog_diffusion.__version__, "torch": torch.__version__},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "command": sys.argv,
    }
    write_text_atomically(path, json.dumps(values, indent=2) + "\n")


def print_summary(summaries: list[StageSummary], result: dict[str, float], seconds: dict[str, float]) -> None:
    """Print one row per stage and search, the saving against full training, and the accuracy."""
    full = fullest(summaries)
    table = Table(title="progressive pretraining, stage by stage")
    for title in ("stage", "steps", "depth", "pixels", "loss", "step", "of full", "FLOPs of full", "memory"):
        table.add_column(title, justify="right")
    for row in summaries:
        table.add_row(
            f"{row.stage + 1}{' search' if row.searching else ''}", f"{row.steps}", f"{row.depth:.3g}",
            f"{row.resolution:.3g}", f"{row.loss:.4f}", f"{1000 * row.step_seconds:.1f} ms",
            f"{row.step_seconds / full.step_seconds:.0%}", f"{row.flops / full.flops:.0%}",
            f"{row.memory / 2**20:,.0f} MiB",
        )  # fmt: skip
    console = _console()
    console.print(table)
    ratios = saving(summaries)
    console.print(
        f"training time {ratios['time']:.2f}x less than all steps at stage {full.stage + 1}'s cost, searches "
        f"included; by FLOPs {ratios['flops']:.2f}x."
    )
    if result:
        console.print(f"validation accuracy {result['accuracy']:.1%}, of the average {result['ema_accuracy']:.1%}.")
    console.print("wall time: " + ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))


def print_decision(decision: dict[str, Any]) -> None:
    """Print what a search knew of every candidate, and which was chosen."""
    rows = decision["candidates"]
    seconds = f"{decision['seconds']:.1f} s" if "seconds" in decision else ""
    table = Table(title=f"search for stage {decision['stage'] + 1} ({decision.get('search', '')}, {seconds})")
    scores = [name for name in ("loss", "cost", "kappa", "zico", "gain", "score", "value") if name in rows[0]]
    for name in ("depth", "pixels", *scores, ""):
        table.add_column(name, justify="right")
    for row in rows:
        shape = {"depth": row.get("depth", len(row.get("blocks", ()))), "resolution": row["resolution"]}
        mark = "chosen" if decision["choice"] == shape else ""
        table.add_row(*(str(value) for value in shape.values()), *(f"{float(row[name]):.4g}" for name in scores), mark)
    _console().print(table)


def draw_timeline(path: Path, log: RunLog) -> None:
    """Draw loss, accuracy, depth, resolution and step time over the optimizer steps, stages shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), dpi=110)
    axes = figure.subplots(5, 1, sharex=True, height_ratios=[2, 1.5, 1, 1, 1])
    rows, steps = log.rows, list(range(1, len(log) + 1))
    axes[0].plot(steps, rows["loss"], color="0.8", linewidth=0.6, label="loss")
    axes[0].plot(steps, smooth(rows["loss"]), color="C0", label="smoothed")
    axes[0].set(ylabel="loss")
    axes[0].legend(loc="upper right", fontsize=8)
    for name, label in (("accuracy", "online"), ("ema_accuracy", "average")):
        points = [(row["step"], 100 * row[name]) for row in log.validations]
        axes[1].plot([x for x, _ in points], [y for _, y in points], ".-", label=label)
    axes[1].set(ylabel="accuracy (%)", ylim=(0, None))
    axes[1].legend(loc="lower right", fontsize=8)
    axes[2].step(steps, rows["depth"], color="C2", where="mid")
    axes[2].set(ylabel="blocks", ylim=(0, 1.15 * max(rows["depth"])))
    axes[3].step(steps, rows["resolution"], color="C4", where="mid")
    axes[3].set(ylabel="pixels", ylim=(0, 1.15 * max(rows["resolution"])))
    times = [1000 * value for value in rows["seconds"]]
    axes[4].plot(steps, times, ".", color="0.8", markersize=2)
    axes[4].set(ylabel="step (ms)", xlabel="optimizer step", ylim=(0, 1.6 * sorted(times)[len(times) * 9 // 10]))
    start = 0
    for row in log.summaries():
        for axis in axes:
            axis.axvspan(start, start + row.steps, color=f"C{row.stage % 10}", alpha=0.14 if row.searching else 0.07,
                         linewidth=0)  # fmt: skip
        if not row.searching:
            axes[4].plot([start, start + row.steps], [1000 * row.step_seconds] * 2, color="C3", linewidth=2)
            axes[0].annotate(f"stage {row.stage + 1}", (start + row.steps / 2, 1.02),
                             xycoords=("data", "axes fraction"), ha="center", fontsize=9)  # fmt: skip
        start += row.steps
    axes[4].set_xlim(0, start)
    figure.align_ylabels()
    figure.tight_layout()
    figure.savefig(path)


def _console() -> Console:
    return Console(width=110 if not sys.stdout.isatty() else None)
