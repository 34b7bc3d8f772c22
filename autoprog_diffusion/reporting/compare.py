"""Several runs side by side: quality against time, costs, and the settings in which they differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .charts import Chart, Series, draw, side_by_side
from .markup import Html, element, table
from .quality import Measure, against, best, common_measure, measured, time_to
from .run_folder import Run
from .words import DASH, duration, listed, loss, percent, short, size


# Flags that only say where files lie, or how often something is written.
PLACES = {
    "output_dir", "overwrite_output_dir", "logging_dir", "cache_dir", "resume_from_checkpoint", "report_to",
    "tracker_project_name", "log_interval", "checkpoints_total_limit", "checkpointing_steps",
}  # fmt: skip


def groups_of(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of the same model together, in the order given."""
    groups: list[list[Run]] = []
    for run in runs:
        own = next((group for group in groups if run.trains_model_of(group[0])), None)
        if own is None:
            groups.append([run])
        else:
            own.append(run)
    return groups


def model_words(run: Run) -> str:
    """A model in words: its name, class and number of blocks."""
    kind = run.start.model_class or "a model"
    return f"{run.model} ({kind} of {run.num_blocks} blocks)"


def comparison(runs: Sequence[Run]) -> Html:
    """Runs of one model side by side."""
    measure = common_measure(runs)
    charts = [
        _curves(runs, measure, "wall time", "seconds"),
        _curves(runs, measure, "CPU time", "cpu_seconds"),
    ]
    notes = [element("li", note) for note in comparison_notes(runs, measure)]
    return element(
        "div",
        side_by_side(*charts),
        element("ul", notes, class_="notes") if notes else None,
        _costs(runs, measure),
        _differences(runs),
    )


def _curves(runs: Sequence[Run], measure: Measure, cost: str, column: str) -> Html:
    """How good the runs were over what they had cost."""
    lines = []
    for number, run in enumerate(runs):
        points = against(run, measure, column)
        dots = len(points) < 60
        line = Series(run.name, points, colour=number, dots=dots)
        lines.append(line)
    chart = Chart(
        f"{measure.name} against {cost}",
        f"{cost} of the steps, in seconds",
        "",
        lines,
        log=measure.lower,
    )
    return draw(chart)


def comparison_notes(runs: Sequence[Run], measure: Measure) -> list[str]:
    """What a reader must know before the curves are compared."""
    notes = []
    if not measure.fair:
        notes.append(
            "Not all runs have a held-out loss, so training losses are shown. They are of the images that a run "
            "learns by heart, and no judge of which run is better."
        )
    if len({run.start.data for run in runs}) > 1:
        notes.append("The runs trained on different data: their losses say little about one another.")
    sets = {(run.held_out.images, run.held_out.draws, run.held_out.ranges) for run in runs if run.held_out is not None}
    if measure.fair and len(sets) > 1:
        notes.append("The held-out losses are of different images, draws or timesteps, and cannot be compared.")
    open_runs = [run.name for run in runs if not run.ended]
    if open_runs:
        notes.append(f"Not complete, and shown as far as measured: {listed(open_runs)}.")
    bare = [run.name for run in runs if not run.rows]
    if bare:
        notes.append(f"Without metrics of single steps, and therefore without a curve: {listed(bare)}.")
    devices = {run.device for run in runs if run.device}
    if len(devices) > 1:
        notes.append(f"The runs used different devices, so their times cannot be compared: {listed(sorted(devices))}.")
    return notes


def _costs(runs: Sequence[Run], measure: Measure) -> Html:
    """A row per run: how good it was, and what it cost."""
    goal = common_goal(runs, measure)
    rows = [_cost_row(run, measure, goal) for run in runs]
    head = ["Run", "Steps", f"Best {measure.name.lower()}", "At step"]
    head.append("Wall time to the goal" if goal is None else f"Wall time to {_quality(goal, measure)}")
    head += ["Wall time", "CPU time", "FLOPs", "Peak memory"]
    return table(head, rows, caption="What the runs reached and cost")


def common_goal(runs: Sequence[Run], measure: Measure) -> float | None:
    """What every run has reached: the worst of their best values; None where a run has none."""
    values = []
    for run in runs:
        found = best(measured(run, measure), measure)
        if found is None:
            return None
        values.append(found[1])
    return max(values) if measure.lower else min(values)


def _cost_row(run: Run, measure: Measure, goal: float | None) -> list[str]:
    found = best(measured(run, measure), measure)
    reached = None if goal is None else time_to(run, measure, goal)
    largest = max((stage.memory for stage in run.stages), default=None)
    return [
        run.name,
        f"{run.steps_done:,} of {run.steps:,}",
        DASH if found is None else _quality(found[1], measure),
        DASH if found is None else f"{found[0]:,}",
        duration(reached),
        duration(run.total_seconds),
        duration(run.total_cpu_seconds),
        short(run.total_flops),
        size(largest),
    ]


def _quality(value: float, measure: Measure) -> str:
    return loss(value) if measure.lower else percent(value)


def _differences(runs: Sequence[Run]) -> Html:
    """The settings, processes and versions in which runs differ."""
    facts = [_facts(run) for run in runs]
    names: dict[str, None] = {}
    for values in facts:
        names |= dict.fromkeys(values)
    rows = []
    for name in names:
        words = [_words(values, name) for values in facts]
        if len(set(words)) > 1:
            rows.append([name, *words])
    if not rows:
        return element("p", "The runs have the same settings.", class_="note")
    head = ["Setting"]
    for run in runs:
        head.append(run.name)
    return table(head, rows, caption="Settings in which the runs differ", numbers=False)


def _facts(run: Run) -> dict[str, Any]:
    start = run.start
    flags = {f"--{name}": value for name, value in start.settings.items() if name not in PLACES}
    versions = {f"version of {name}": version for name, version in start.versions.items()}
    return {"script": run.script, **flags, "processes": start.processes, "device": run.device, **versions}


def _words(values: dict[str, Any], name: str) -> str:
    if name not in values:
        return DASH
    value = values[name]
    return value if isinstance(value, str) else json.dumps(value, default=str)
