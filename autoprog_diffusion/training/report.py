"""What a run leaves to look at: growth.json, the timeline picture and the summary table."""

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
from autoprog_diffusion.growth import GrowthScheduler

from .metrics import RunLog, StageSummary, fullest, saving
from .smoothing import smooth


def write_report(folder: Path, growth: GrowthScheduler, log: RunLog, seconds: dict[str, float]) -> None:
    """Write `growth.json` and `timeline.png`, and print the summary table.

    Args:
        folder: The run's output folder.
        growth: After the last step.
        log: Of the whole run.
        seconds: Wall time of the run's phases, by name.
    """
    summaries = log.summaries([len(stage.blocks) for stage in growth.plan.stages])
    write_growth_json(folder / "growth.json", growth, summaries, seconds)
    for decision in growth.decisions:
        print_decision(decision)
    draw_timeline(folder / "timeline.png", log, summaries)
    print_summary(summaries, growth.plan.num_blocks, seconds)


def write_growth_json(
    path: Path, growth: GrowthScheduler, summaries: list[StageSummary], seconds: dict[str, float]
) -> None:
    """Write plan, configuration, history and measurements; `GrowthPlan.load` reads the plan back from it."""
    values: dict[str, Any] = {
        "plan": growth.plan.to_dict(),
        "config": growth.config.to_dict(),
        "decisions": growth.decisions,
        "history": [record.to_dict() for record in growth.history],
        "stages": [asdict(summary) for summary in summaries],
        "saving_against_full": saving(summaries),
        "seconds": seconds,
        "versions": {"autoprog_diffusion": autoprog_diffusion.__version__, "torch": torch.__version__},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "command": sys.argv,
    }
    write_text_atomically(path, json.dumps(values, indent=2) + "\n")


def print_summary(summaries: list[StageSummary], num_blocks: int, seconds: dict[str, float]) -> None:
    """Print one row per stage: what was trained, step time, memory, and the saving against full."""
    full = fullest(summaries)
    table = Table(title="progressive fine-tuning, stage by stage")
    titles = ("stage", "steps", "blocks", "trains", "pixels", "loss", "step", "of full", "FLOPs of full", "memory")
    for title in titles:
        table.add_column(title, justify="right")
    for row in summaries:
        flops = f"{row.flops / full.flops:.0%}" if row.flops and full.flops else "-"
        table.add_row(
            f"{row.stage + 1}", f"{row.steps}", f"{row.blocks}/{num_blocks}", f"{row.trainable:.0%}",
            f"{row.resolution}", f"{row.loss:.4f}", f"{1000 * row.step_seconds:.1f} ms",
            f"{row.step_seconds / full.step_seconds:.0%}", flops, f"{row.memory / 2**20:,.0f} MiB",
        )  # fmt: skip
    console = _console()
    console.print(table)
    ratios = saving(summaries)
    text = f"training time {ratios['time']:.2f}x less than all steps at stage {full.stage + 1}'s cost"
    if "flops" in ratios:
        text += f"; by FLOPs alone {ratios['flops']:.2f}x"
    console.print(text + ".")
    console.print("wall time: " + ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))


def print_decision(decision: dict[str, Any], most: int = 6) -> None:
    """Print the best candidates of one search: scores, cost against the dearest, and which was chosen."""
    rows = sorted(decision["candidates"], key=lambda row: float(row["value"]))
    dearest = max(float(row["cost"]) for row in rows) or 1.0
    title = f"search for stage {decision['stage'] + 1} ({decision['objective']}, {decision['seconds']:.1f} s)"
    table = Table(title=title)
    for name in ("candidate", "blocks", "cost", "kappa", "ZiCo", "gain", "score", ""):
        table.add_column(name, justify="right")
    for row in rows[:most]:
        numbers = [f"{float(row[key]):.4g}" for key in ("kappa", "zico", "gain", "value")]
        mark = "chosen" if row["name"] == decision["choice"] else ""
        cost = f"{float(row['cost']) / dearest:.0%}"
        table.add_row(row["name"], str(len(row["blocks"])), cost, *numbers, mark)
    if len(rows) > most:
        table.caption = f"{len(rows) - most} more in growth.json"
    _console().print(table)


def _console() -> Console:
    return Console(width=110 if not sys.stdout.isatty() else None)


def draw_timeline(path: Path, log: RunLog, summaries: list[StageSummary]) -> None:
    """Draw loss, trainable share, resolution and step time over the optimizer steps, stages shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), dpi=110)
    axes = figure.subplots(4, 1, sharex=True, height_ratios=[2, 1, 1, 1])
    steps = list(range(1, len(log) + 1))
    loss = log.rows["loss"]
    axes[0].plot(steps, loss, color="0.8", linewidth=0.6, label="loss")
    axes[0].plot(steps, smooth(loss), color="C0", label="smoothed")
    axes[0].set(ylabel="loss", yscale="log")
    axes[0].legend(loc="upper right", fontsize=8)
    axes[1].step(steps, [100 * value for value in log.rows["trainable"]], color="C2", where="mid")
    axes[1].set(ylabel="trains (%)", ylim=(0, 105))
    axes[2].step(steps, log.rows["resolution"], color="C4", where="mid")
    axes[2].set(ylabel="pixels", ylim=(0, 1.15 * max(log.rows["resolution"])))
    times = [1000 * value for value in log.rows["seconds"]]
    axes[3].plot(steps, times, ".", color="0.8", markersize=2)
    axes[3].set(ylabel="step (ms)", xlabel="optimizer step", ylim=(0, 1.6 * sorted(times)[len(times) * 9 // 10]))
    start = 0
    for row in summaries:
        for axis in axes:
            axis.axvspan(start, start + row.steps, color=f"C{row.stage % 10}", alpha=0.07, linewidth=0)
        axes[3].plot([start, start + row.steps], [1000 * row.step_seconds] * 2, color="C3", linewidth=2)
        axes[0].annotate(f"stage {row.stage + 1}", (start + row.steps / 2, 1.02), xycoords=("data", "axes fraction"),
                         ha="center", fontsize=9)  # fmt: skip
        start += row.steps
    axes[3].set_xlim(0, start)
    figure.align_ylabels()
    figure.tight_layout()
    figure.savefig(path)
