"""Data, flags and starts of a run."""

from __future__ import annotations

import json
from typing import Any

from .markup import Html, details, element, table
from .run_folder import Run
from .words import listed


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
            parts.append(
                table(
                    head,
                    rows,
                    caption=f"Left out of {source.source}",
                    numbers=False,
                )
            )
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
        cells = [
            str(number),
            entry.date,
            f"{entry.step:,}",
            str(entry.processes),
            " ".join(entry.command),
            versions,
        ]
        starts.append(cells)
    start_head = [
        "Start",
        "Date",
        "At step",
        "Processes",
        "Command",
        "Versions",
    ]
    return element(
        "div",
        table(
            head,
            given,
            caption="Given on the command line",
            numbers=False,
        )
        if given
        else None,
        details(
            "All other flags",
            table(
                head,
                others,
                caption="Defaults",
                numbers=False,
            ),
        ),
        details(
            "Starts",
            table(
                start_head,
                starts,
                caption="Every start of the run",
                numbers=False,
            ),
        ),
    )


def _value(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, str):
        return value
    return json.dumps(
        value,
        ensure_ascii=False,
        default=str,
    )
