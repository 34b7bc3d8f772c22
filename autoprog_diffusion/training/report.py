"""Results of a run to look at: growth.json, metrics.json, the timeline picture and the tables."""

from __future__ import annotations

from pathlib import Path

from autoprog_diffusion.files import GROWTH_FILE, METRICS_FILE
from autoprog_diffusion.growth.protocol import Growth

from .decision_table import print_decision
from .metrics import Metrics
from .saved_metrics import write_growth_json, write_metrics_json
from .summary_table import print_summary, recomputation_sentences
from .timeline import draw_timeline


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
