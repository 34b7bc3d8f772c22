"""Held-out loss of a run over its steps, range by range, and whether it ended the run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autoprog_diffusion.growth.values import JSON

from .charts import Chart, Series, draw, side_by_side
from .held_out import HeldOut
from .markup import Html, details, element, table
from .timeline import X_LABEL
from .words import DASH, count, duration, loss, short


BAND = "The band is the noise of the difference to the evaluation before."


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
        [
            Series(
                name,
                line,
                colour=number,
                dots=True,
            )
            for number, (name, line) in enumerate(parts)
        ],
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
    more = [f"{name.replace('_', ' ')} {value}" for name, value in values.items()]
    return element("p", " ".join([text, *more]))


def _range_name(low: float, high: float) -> str:
    """A range of timesteps, given as shares of them, in words; little noise comes first."""
    return f"timesteps {100 * low:.3g} to {100 * high:.3g}\u00a0%"
