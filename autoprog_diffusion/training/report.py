"""Results of a run to look at: growth.json, the timeline picture and the summary table."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from autoprog_diffusion.files import GROWTH_FILE, METRICS_FILE
from autoprog_diffusion.growth.memory import StageMemory
from autoprog_diffusion.growth.plan import GrowthPlan
from autoprog_diffusion.growth.protocol import Growth
from autoprog_diffusion.stage_summary import StageSummary

from .metrics import Metrics, full_stage, saving
from .prediction import prediction_sentence
from .saved_metrics import write_growth_json, write_metrics_json


# Numbers that searches give their candidates: what a candidate costs, its scores, and their sum, lowest first.
SCORES = ("loss", "cost", "kappa", "zico", "gain", "score", "value")
MOST_CANDIDATES = 6


def write_report(folder: Path, growth: Growth, metrics: Metrics, seconds: dict[str, float]) -> None:
    """Write `growth.json`, `metrics.json` and `timeline.png`, and print the summary table.

    Args:
        folder: The run's output folder.
        growth: The growth object after the last step.
        metrics: Metrics of the whole run.
        seconds: Wall time of the run's phases, by name.
    """
    write_growth_json(folder / GROWTH_FILE, growth, metrics, seconds)
    write_metrics_json(folder / METRICS_FILE, metrics)
    draw_timeline(folder / "timeline.png", metrics, growth.plan)
    for decision in growth.decisions:
        print_decision(decision)
    print_summary(metrics, growth.plan.num_blocks, seconds)
    for sentence in recomputation_sentences([record.to_dict() for record in growth.history]):
        print(sentence)


def print_summary(metrics: Metrics, num_blocks: int, seconds: dict[str, float]) -> None:
    """Print one row per stage and search, the saving against full training, and the accuracy if it was measured."""
    summaries = metrics.summaries()
    full = full_stage(summaries, num_blocks)
    rows = [
        {
            "stage": f"{row.stage + 1}{' search' * row.searching}",
            "steps": f"{row.steps}",
            "blocks": f"{row.blocks:.3g}/{num_blocks}",
            "trains": f"{row.trainable:.0%}",
            "pixels": f"{row.resolution:.4g}",
            "loss": f"{row.loss:.4f}",
            "step": milliseconds(row.step_seconds),
            "of full": share(row.step_seconds, full and full.step_seconds),
            "FLOPs of full": share(row.flops, full and full.flops),
            "memory": f"{row.memory / 2**20:,.0f} MiB",
        }
        for row in summaries
    ]
    print_table("progressive training, stage by stage", rows)
    print(saving_sentence(summaries, num_blocks))
    for result in metrics.validations[-1:]:
        print(f"validation accuracy {result['accuracy']:.1%}, of the average {result['ema_accuracy']:.1%}.")
    times = [f"{name} {value:.1f} s" for name, value in seconds.items()]
    print(f"wall time: {', '.join(times)}")
    sentence = prediction_sentence(metrics)
    if sentence is not None:
        print(sentence)


def recomputation_sentences(history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A sentence per stage whose blocks growth lets be computed again in the backward pass.

    Args:
        history: The stages entered, as plain JSON types.
    """
    for record in history:
        names = record.get("recomputed")
        if names is None:
            continue
        memory = record["memory"]
        predicted = ""
        if memory is not None:
            predicted = f", {StageMemory(**memory)}"
        yield f"stage {record['stage'] + 1}: {len(names)} blocks are computed again in the backward pass{predicted}."


def print_table(title: str, rows: Sequence[Mapping[str, str]], caption: str | None = None) -> None:
    """Print rows of cells by the titles of their columns."""
    columns = [Column(name, justify="right") for name in rows[0]]
    table = Table(*columns, title=title, caption=caption)
    for row in rows:
        table.add_row(*row.values())
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def saving_sentence(summaries: list[StageSummary], num_blocks: int) -> str:
    """What the run saved, in one sentence."""
    full = full_stage(summaries, num_blocks)
    if full is None:
        return "no stage trains all blocks: what full training would have cost was not measured."
    if len(summaries) == 1:
        return "one stage: everything that may train did so in every step."
    ratios = saving(summaries, num_blocks)
    changes = []
    for name, less, more in (("flops", "fewer FLOPs", "more FLOPs"), ("time", "less time", "more time")):
        ratio = ratios[name]
        if ratio is not None:
            saved = 1 - 1 / ratio
            changes.append(f"{abs(saved):.0%} {less if saved >= 0 else more}")
    return f"{' and '.join(changes)} than as many steps of full training (stage {full.stage + 1})."


def milliseconds(seconds: float | None) -> str:
    """A time for the table; a dash where it is not known."""
    return "-" if seconds is None else f"{1000 * seconds:.1f} ms"


def share(part: float | None, whole: float | None) -> str:
    """A part of a time or cost in percent for the table; a dash where one of them is not known."""
    return "-" if part is None or whole is None else f"{part / whole:.0%}"


def print_decision(decision: dict[str, Any]) -> None:
    """Print the best candidates of one search: their scores, their cost, and which was chosen."""
    # Where a search does not add up its scores, the order is its own.
    candidates = sorted(decision["candidates"], key=lambda candidate: float(candidate.get("value", 0)))
    costs = [scores(candidate).get("cost", 0) for candidate in candidates]
    most_expensive = max(costs) or 1
    rows = []
    for candidate in candidates[:MOST_CANDIDATES]:
        row = {
            "candidate": candidate.get("name", ""),
            "blocks": str(depth_of(candidate)),
            "pixels": str(candidate.get("resolution", "")),
        }
        for name, score in scores(candidate).items():
            row[name] = f"{score / most_expensive:.0%}" if name == "cost" else f"{score:.4g}"
        row[""] = "chosen" if is_chosen(decision, candidate) else ""
        rows.append(row)
    method = decision.get("objective") or decision.get("search", "")
    seconds = f", {decision['seconds']:.1f} s" if "seconds" in decision else ""
    title = f"search for stage {decision['stage'] + 1} ({method}{seconds})"
    more = len(candidates) - len(rows)
    print_table(title, rows, caption=f"{more} more in growth.json" if more else None)


def scores(candidate: dict[str, Any]) -> dict[str, float]:
    """The numbers that a search gave a candidate; JSON has infinite ones as words."""
    return {name: float(candidate[name]) for name in SCORES if name in candidate}


def is_chosen(decision: dict[str, Any], candidate: dict[str, Any]) -> bool:
    """Whether a search decided for this candidate: the choice is its name, or its depth and resolution."""
    choice = decision["choice"]
    if isinstance(choice, str):
        return candidate["name"] == choice
    return {"depth": depth_of(candidate), "resolution": candidate["resolution"]} == choice


def depth_of(candidate: dict[str, Any]) -> int:
    """Number of blocks that a candidate trains."""
    return candidate["depth"] if "depth" in candidate else len(candidate["blocks"])


def draw_timeline(path: Path, metrics: Metrics, plan: GrowthPlan | None = None) -> None:
    """Draw loss, trainable share, resolution, step time and, if measured, accuracy over the optimizer steps.

    Stages are shaded, searches darker. A plan that opens and closes blocks has a panel of which ones train.
    """
    from matplotlib.figure import Figure

    rows = metrics.rows
    panels = {
        "loss": rows["loss"],
        "trains (%)": 100 * np.array(rows["trainable"]),
        "pixels": rows["resolution"],
        "step (ms)": 1000 * np.array(rows["seconds"]),
    }
    count = len(panels)
    windows = plan is not None and not plan.monotone
    count += windows
    if metrics.validations:
        count += 1
    figure = Figure(figsize=(9, 3 + count), dpi=110, layout="tight")
    heights = [2] + [1] * (count - 1)
    axes = figure.subplots(count, 1, sharex=True, height_ratios=heights)
    steps = range(1, len(metrics) + 1)
    for axis, (label, values) in zip(axes, panels.items()):
        axis.plot(steps, values, ".", color="0.7", markersize=2)
        axis.set_ylabel(label)
        if label != "loss":
            # The slowest steps, which build kernels or evaluate candidates, may lie outside the picture.
            most = np.quantile(values, 0.9)
            axis.set_ylim(0, 1.6 * most)
    axes[0].plot(steps, smooth(rows["loss"]), color="C0")
    axes[0].set_yscale("log")
    if plan is not None and windows:
        _draw_blocks(axes[len(panels)], metrics.summaries(), plan)
    if metrics.validations:
        _draw_accuracy(axes[-1], metrics.validations)
    _draw_stages(axes, metrics.summaries())
    axes[-1].set(xlabel="optimizer step", xlim=(0, len(metrics)))
    figure.align_ylabels()
    figure.savefig(path)


def _draw_stages(axes: Sequence[Any], summaries: list[StageSummary]) -> None:
    """Shade and name the stages in all panels, and draw the median time of their steps in the fourth."""
    end = 0
    for row in summaries:
        start = end
        end += row.steps
        for axis in axes:
            alpha = 0.14 if row.searching else 0.07
            axis.axvspan(start, end, color=f"C{row.stage}", alpha=alpha, linewidth=0)
        if row.step_seconds is not None:
            axes[3].hlines(1000 * row.step_seconds, start, end, color="C3")
        above = axes[0].get_xaxis_transform()
        axes[0].text(start, 1.02, f" stage {row.stage + 1}", transform=above, fontsize=9)


def _draw_blocks(axis: Any, summaries: list[StageSummary], plan: GrowthPlan) -> None:
    """Draw which blocks train in every stage, those nearest the input at the bottom."""
    end = 0
    for row in summaries:
        start = end
        end += row.steps
        blocks = plan.stages[row.stage].blocks
        axis.barh(blocks, row.steps, left=start, height=1.0, color=f"C{row.stage}")
    axis.set(ylabel="blocks", ylim=(-0.5, plan.num_blocks - 0.5))


def smooth(values: Iterable[float], weight: float = 0.98) -> list[float]:
    """Exponential moving average, corrected for its start.

    Example:
        >>> [round(value, 6) for value in smooth([2.0, 2.0, 2.0])]
        [2.0, 2.0, 2.0]
    """
    result = []
    average = 0.0
    for count, value in enumerate(values, start=1):
        average += (1 - weight) * (value - average)
        result.append(average / (1 - weight**count))
    return result


def _draw_accuracy(axis: Any, validations: list[dict[str, float]]) -> None:
    for name, label in {"accuracy": "raw weights", "ema_accuracy": "average"}.items():
        points = [(row["step"], 100 * row[name]) for row in validations]
        axis.plot(*zip(*points), ".-", label=label)
    axis.set(ylabel="accuracy (%)", ylim=(0, None))
    axis.legend(loc="lower right", fontsize=8)
