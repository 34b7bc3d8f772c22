"""The picture of a run: its curves over the optimizer steps, with the stages shaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoprog_diffusion.growth.plan import GrowthPlan
from autoprog_diffusion.stage_summary import StageSummary

from .metrics import Metrics


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
