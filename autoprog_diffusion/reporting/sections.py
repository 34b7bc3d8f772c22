"""The sections of a run: timeline, blocks, held-out loss, decisions, costs, pictures, data and settings."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from autoprog_diffusion.growth.values import JSON

from .charts import Band, Chart, Series, draw, side_by_side
from .held_out import HeldOut
from .markup import Html, details, element, table
from .pictures import MOST_GRIDS, figure, spread
from .quality import smoothing
from .run_folder import Run
from .scales import smooth, thinned
from .stages import full_cost
from .words import DASH, count, duration, listed, loss, percent, ratio, short, size


X_LABEL = "optimizer step"
BAND = "The band is the noise of the difference to the evaluation before."
# Numbers that searches give their candidates; as `training.report.SCORES`.
SCORES = ("loss", "cost", "kappa", "zico", "gain", "score", "value")


def timeline(run: Run) -> Html:
    """Loss, step time, share of the parameters, size and memory over the steps."""
    if not run.rows:
        return element("p", "No metrics of single steps are there to draw.", class_="note")
    rows = run.rows
    bands = stage_bands(run)
    smoothed = smooth(rows["loss"], smoothing(rows["loss"]))
    lines = [
        Series("every step", thinned(rows["loss"]), faint=True),
        Series("moving average", thinned(smoothed)),
    ]
    large = draw(Chart("Training loss", X_LABEL, "", lines, bands=bands, log=True))
    times = [1000 * value for value in rows["seconds"]]
    small = [
        _small("Time of a step", "ms", _clipped(times), bands),
        _small("Parameters that train", "%", [100 * value for value in rows["trainable"]], bands),
        _small("Memory", "MiB", [value / 2**20 for value in rows["memory"]], bands),
    ]
    if len(set(rows["resolution"])) > 1:
        small.append(_small("Size of the images", "px", rows["resolution"], bands))
    return element("div", large, side_by_side(*small))


def stage_bands(run: Run) -> list[Band]:
    """The stages and searches of a run as parts of the x axis."""
    bands = []
    end = 0
    for stage in run.stages:
        start = end
        end += stage.steps
        bands.append(Band(start, end, stage.name))
    return bands


def held_out_section(held_out: HeldOut | None) -> Html:
    """Held-out loss over the steps: of all timesteps, and range by range."""
    if held_out is None or not held_out.evaluations:
        return element("p", "No held-out loss was measured in this run.", class_="note")
    points = [(float(entry.step), entry.loss) for entry in held_out.evaluations]
    margin = []
    for entry in held_out.evaluations:
        if math.isfinite(entry.loss) and math.isfinite(entry.noise):
            margin.append((entry.step, entry.loss - entry.noise, entry.loss + entry.noise))
    marks = [] if held_out.best is None else [(float(held_out.best[0]), f"best, at step {held_out.best[0]:,}")]
    whole = Chart(
        "Held-out loss",
        X_LABEL,
        "",
        [Series("all timesteps", points, dots=True)],
        marks=marks,
        margin=margin,
        note=f"{count(held_out.images, 'image')}, {count(held_out.draws, 'draw')} of noise each. {BAND}",
    )
    names = [_range_name(low, high) for low, high in held_out.ranges]
    parts = []
    for number, name in enumerate(names):
        parts.append((name, [(float(entry.step), entry.by_range[number]) for entry in held_out.evaluations]))
    by_range = Chart(
        "Held-out loss by timestep",
        X_LABEL,
        "",
        [Series(name, line, colour=number, dots=True) for number, (name, line) in enumerate(parts)],
        marks=marks,
        log=True,
    )
    return element(
        "div",
        side_by_side(draw(whole), draw(by_range)),
        _stopped(held_out.stopped),
        details("The numbers", _held_out_table(held_out, names)),
    )


def _held_out_table(held_out: HeldOut, names: Sequence[str]) -> Html:
    rows = []
    for entry in held_out.evaluations:
        rows.append(
            [f"{entry.step:,}", loss(entry.loss), short(entry.noise, 2), *[loss(value) for value in entry.by_range]]
        )
    head = ["Step", "Loss", "Noise", *names]
    return table(head, rows, caption="Held-out loss of every evaluation")


def _stopped(stopped: JSON | None) -> Html | None:
    if stopped is None:
        return None
    values = dict(stopped)
    saved = values.pop("seconds_saved", None)
    text = f"The run was stopped early, at step {values.pop('step', DASH)} of {values.pop('of', DASH)}"
    text += f": {values.pop('reason', 'no reason is noted')}."
    if isinstance(saved, int | float):
        text += f" The rest would have cost {duration(saved)}."
    more = [f"{name.replace('_', ' ')} {_value(value)}" for name, value in values.items()]
    return element("p", " ".join([text, *more]))


def _range_name(low: float, high: float) -> str:
    """A range of timesteps, given as shares of them, in words; little noise comes first."""
    return f"timesteps {100 * low:.3g} to {100 * high:.3g}\u00a0%"


def decisions_section(run: Run) -> Html | None:
    """Candidates of every decision of a search, and which was chosen; None without a search."""
    if not run.decisions:
        return None
    return element("div", [_decision(decision) for decision in run.decisions])


def _decision(decision: JSON) -> Html:
    candidates = [row for row in decision.get("candidates", []) if isinstance(row, dict)]
    scores = [name for name in SCORES if any(name in row for row in candidates)]
    rows = []
    for row in sorted(candidates, key=_order):
        chosen = _is_chosen(decision, row)
        name = str(row.get("name") or f"{_depth(row)} blocks at {row.get('resolution', '')} px")
        numbers = [_score(row.get(score)) for score in scores]
        cells = [str(_depth(row)), str(row.get("resolution", DASH)), *numbers, "chosen" if chosen else ""]
        rows.append([element("strong", name) if chosen else name, *cells])
    method = decision.get("objective") or decision.get("search") or "search"
    seconds = decision.get("seconds")
    took = f", {duration(float(seconds))}" if isinstance(seconds, int | float) else ""
    stage = decision.get("stage")
    number = stage + 1 if isinstance(stage, int) else stage
    caption = f"Search for stage {number} ({method}{took})"
    return table(["Candidate", "Blocks", "Size", *scores, ""], rows, caption=caption)


def _order(candidate: JSON) -> float:
    value = candidate.get("value", 0)
    return float(value) if isinstance(value, int | float) else 0.0


def _score(value: Any) -> str:
    if value is None:
        return DASH
    return short(float(value), 4) if isinstance(value, int | float) else str(value)


def _is_chosen(decision: JSON, candidate: JSON) -> bool:
    choice = decision.get("choice")
    if isinstance(choice, dict):
        return choice == {"depth": _depth(candidate), "resolution": candidate.get("resolution")}
    return choice == candidate.get("name")


def _depth(candidate: JSON) -> Any:
    blocks = candidate.get("blocks")
    return candidate.get("depth", len(blocks) if isinstance(blocks, list) else DASH)


def costs_section(run: Run) -> Html:
    """Step time and memory of every stage, beside what was counted or predicted before they were measured."""
    if not run.stages:
        return element("p", "No stage was measured yet.", class_="note")
    blocks = 0 if run.plan is None else run.plan.num_blocks
    full = full_cost(run.stages, blocks)
    predicted = {record.stage: record.memory for record in run.entered}
    rows = []
    for stage in run.stages:
        memory = predicted.get(stage.stage)
        rows.append(
            [
                stage.name,
                f"{stage.steps:,}",
                f"{stage.blocks:.3g} of {blocks}",
                percent(stage.trainable),
                f"{stage.resolution:.4g} px",
                loss(stage.loss),
                duration(stage.step_seconds),
                percent(ratio(stage.step_seconds, full and full.step_seconds)),
                percent(ratio(stage.flops, full and full.flops)),
                size(stage.memory),
                size(memory),
            ]
        )
    head = ["Stage", "Steps", "Blocks", "Parameters", "Size", "Loss", "Step", "Time of a full step"]
    head += ["FLOPs of a full step", "Memory", "Predicted memory"]
    note = (
        "Step: median wall time without the first step. Its FLOPs, counted, say what the plan promised of the time. "
        "Memory: allocated on the GPU, or resident on a CPU; predicted under --checkpointing auto only."
    )
    return element("div", table(head, rows, caption="Every stage"), element("p", note, class_="note"))


def pictures_section(run: Run) -> Html:
    """What the run drew."""
    if not run.pictures:
        return element("p", "No pictures are in the folder.", class_="note")
    final = [picture for picture in run.pictures if picture.step is None]
    grids = [picture for picture in run.pictures if picture.step is not None]
    shown = spread(grids)
    left = None
    if len(shown) < len(grids):
        text = f"{MOST_GRIDS} of {len(grids)} grids, evenly spread; all are in the folder."
        left = element("p", text, class_="note")
    return element("div", [figure(picture, run.name) for picture in [*shown, *final]], left)


def data_section(run: Run) -> Html:
    """What was found in the data, and what was left out."""
    if not run.data:
        return element("p", "The run has left no report of its data.", class_="note")
    parts = []
    for source in run.data:
        lost = sum(source.left_out.values())
        text = f"{source.source}: found {source.found:,}, {source.verb} {source.used:,}, left out {lost:,}."
        parts.append(element("p", text))
        rows = []
        for reason, number in sorted(source.left_out.items(), key=lambda pair: -pair[1]):
            rows.append([reason, f"{number:,}", listed(source.examples.get(reason, ()))])
        if rows:
            head = ["Left out because", "Number", "For example"]
            parts.append(table(head, rows, caption=f"Left out of {source.source}", numbers=False))
        parts += [element("p", f"Note: {note}", class_="note") for note in source.notes]
    return element("div", parts)


def settings_section(run: Run) -> Html:
    """Flags of the last start, those of the command line apart, and all starts."""
    start = run.start
    given = [[f"--{name}", _value(start.settings.get(name))] for name in start.given]
    others = [[f"--{name}", _value(value)] for name, value in start.settings.items() if name not in start.given]
    head = ["Flag", "Value"]
    starts = []
    for number, entry in enumerate(run.starts, start=1):
        versions = ", ".join(f"{name} {version}" for name, version in entry.versions.items())
        cells = [str(number), entry.date, f"{entry.step:,}", str(entry.processes), " ".join(entry.command), versions]
        starts.append(cells)
    start_head = ["Start", "Date", "At step", "Processes", "Command", "Versions"]
    return element(
        "div",
        table(head, given, caption="Given on the command line", numbers=False) if given else None,
        details("All other flags", table(head, others, caption="Defaults", numbers=False)),
        details("Starts", table(start_head, starts, caption="Every start of the run", numbers=False)),
    )


def _small(title: str, unit: str, values: Sequence[float], bands: Sequence[Band]) -> Html:
    line = [Series(title, thinned(values))]
    return draw(Chart(title, X_LABEL, unit, line, bands=bands, from_zero=True, low=True))


def _clipped(values: list[float]) -> list[float]:
    """The slowest steps, which build kernels or evaluate candidates, may lie outside of the picture."""
    ordered = sorted(values)
    most = 1.6 * ordered[int(0.9 * (len(ordered) - 1))]
    return [min(value, most) for value in values]


def _value(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
