"""The plot of the time-to-quality benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from cases import CASES
from methods import METHODS
from table import PLOTTED, Row, chosen


def draw(results: Sequence[Row], path: Path) -> None:
    """Held-out loss against CPU time, FLOPs and bytes, one row of panels per case, mean over seeds."""
    from matplotlib.figure import Figure

    cases = [case for case in CASES if chosen(results, case, "full")]
    axes_of = {"cpu": "CPU time (s)", "flops": "TFLOP", "bytes": "GB all-reduced"}
    figure = Figure(figsize=(13, 3.4 * len(cases)), dpi=100)
    panels = figure.subplots(len(cases), len(axes_of), squeeze=False)
    for line, case in zip(panels, cases):
        for panel, (axis, label) in zip(line, axes_of.items()):
            for number, method in enumerate(PLOTTED):
                _curve(panel, chosen(results, case, method), axis, METHODS[method].title, f"C{number % 10}")
            panel.set(xlabel=label, yscale="log", title=CASES[case].title, ylabel="held-out loss")
    lines, names = panels[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="lower center", ncols=4, fontsize=8)
    figure.tight_layout(rect=(0, 0.06 / max(1, len(cases) / 4), 1, 1))
    figure.savefig(path)


def _curve(panel: Any, runs: Sequence[Row], axis: str, label: str, colour: str) -> None:
    if not runs:
        return
    unit = {"cpu": 1.0, "flops": 1e12, "bytes": 1e9}[axis]
    points = list(zip(*(run["curve"] for run in runs)))[1:]
    xs = [mean(point[axis] for point in seeds) / unit for seeds in points]
    panel.plot(xs, [mean(point["held_out_loss"] for point in seeds) for seeds in points], label=label, color=colour)
