"""Held-out loss of a run over its steps, range by range, and whether it ended the run."""

from __future__ import annotations

from autoprog_diffusion.growth.values import JSON

from .charts import Chart, Series, draw, side_by_side
from .held_out import HeldOut
from .markup import Html, details, element, table
from .scales import drawable
from .timeline import X_LABEL
from .words import DASH, count, duration, loss, short


BAND = "The band is the noise of the difference to the evaluation before."


def held_out_section(held_out: HeldOut | None) -> Html:
    """Held-out loss over the steps: of all timesteps, and range by range."""
    if held_out is None or not held_out.evaluations:
        return element("p", "No held-out loss was measured in this run.", class_="note")
    return element(
        "div",
        side_by_side(draw(_whole(held_out)), draw(_by_range(held_out))),
        _stopped(held_out.stopped),
        details("The numbers", _numbers(held_out)),
    )


def _whole(held_out: HeldOut) -> Chart:
    """The mean over all timesteps, with its noise."""
    points = []
    margin = []
    for entry in held_out.evaluations:
        step = float(entry.step)
        points.append((step, entry.loss))
        low = entry.loss - entry.noise
        high = entry.loss + entry.noise
        if drawable(low, high):
            margin.append((step, low, high))
    images = count(held_out.images, "image")
    draws = count(held_out.draws, "draw")
    return Chart(
        "Held-out loss",
        X_LABEL,
        "",
        [Series("all timesteps", points, dots=True)],
        marks=_marks(held_out),
        margin=margin,
        note=f"{images}, {draws} of noise each. {BAND}",
    )


def _by_range(held_out: HeldOut) -> Chart:
    """A line for every range of timesteps."""
    lines = []
    for number, name in enumerate(_range_names(held_out)):
        points = []
        for entry in held_out.evaluations:
            point = (float(entry.step), entry.by_range[number])
            points.append(point)
        line = Series(name, points, colour=number, dots=True)
        lines.append(line)
    return Chart(
        "Held-out loss by timestep",
        X_LABEL,
        "",
        lines,
        marks=_marks(held_out),
        log=True,
    )


def _marks(held_out: HeldOut) -> list[tuple[float, str]]:
    """Where the loss was lowest."""
    if held_out.best is None:
        return []
    step, _ = held_out.best
    return [(float(step), f"lowest, at step {step:,}")]


def _range_names(held_out: HeldOut) -> list[str]:
    """Ranges of timesteps, given as shares of them, in words; little noise comes first."""
    names = []
    for low, high in held_out.ranges:
        first = f"{100 * low:.3g}"
        last = f"{100 * high:.3g}"
        names.append(f"timesteps {first} to {last}\u00a0%")
    return names


def _numbers(held_out: HeldOut) -> Html:
    rows = []
    for entry in held_out.evaluations:
        row = [f"{entry.step:,}", loss(entry.loss), short(entry.noise, 2)]
        for value in entry.by_range:
            row.append(loss(value))
        rows.append(row)
    head = ["Step", "Loss", "Noise", *_range_names(held_out)]
    return table(head, rows, caption="Held-out loss of every evaluation")


def _stopped(stopped: JSON | None) -> Html | None:
    """How the run ended early, as its rule noted it."""
    if stopped is None:
        return None
    values = dict(stopped)
    step = values.pop("step", DASH)
    length = values.pop("of", DASH)
    reason = values.pop("reason", "no reason is noted")
    saved = values.pop("seconds_saved", None)
    sentences = [f"The run was stopped early, at step {step} of {length}: {reason}."]
    if isinstance(saved, int | float):
        sentences.append(f"The rest would have taken {duration(saved)}.")
    for name, value in values.items():
        sentences.append(f"{name}: {value}.")
    return element("p", " ".join(sentences))
