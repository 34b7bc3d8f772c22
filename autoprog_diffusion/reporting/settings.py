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
    given = []
    for name in start.given:
        value = start.settings.get(name)
        given.append([f"--{name}", _value(value)])
    others = []
    for name, value in start.settings.items():
        if name not in start.given:
            others.append([f"--{name}", _value(value)])
    parts = []
    if given:
        parts.append(_flags(given, "Given on the command line"))
    return element(
        "div",
        parts,
        details("All other flags", _flags(others, "Defaults")),
        details("Starts", _starts(run)),
    )


def _flags(rows: list[list[str]], caption: str) -> Html:
    return table(["Flag", "Value"], rows, caption=caption, numbers=False)


def _starts(run: Run) -> Html:
    rows = []
    for number, start in enumerate(run.starts, start=1):
        versions = [f"{name} {version}" for name, version in start.versions.items()]
        row = [
            str(number),
            start.date,
            f"{start.step:,}",
            str(start.processes),
            " ".join(start.command),
            ", ".join(versions),
        ]
        rows.append(row)
    head = ["Start", "Date", "At step", "Processes", "Command", "Versions"]
    return table(head, rows, caption="Every start of the run", numbers=False)


def _value(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, str):
        return value
    return json.dumps(
        value,
        ensure_ascii=False,
        default=str,
    )
