"""The starts of a run and its data, as `run.json` tells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoprog_diffusion.growth.values import JSON


@dataclass(frozen=True)
class Start:
    """One start of a run.

    Attributes:
        date: In ISO 8601.
        step: Optimizer steps done before it.
        steps: Optimizer steps of the whole run; None in files of older versions.
        processes: Number of processes.
        command: As it was typed.
        versions: Package -> version.
        settings: Flag -> value.
        given: Flags of the command line.
        data: Mark of the data, if it was noted.
        model_class: Class of the model that trains; empty in files of older versions.
        parameters: Number of its parameters.
    """

    date: str
    step: int
    steps: int | None
    processes: int
    command: tuple[str, ...]
    versions: dict[str, str]
    settings: dict[str, Any]
    given: tuple[str, ...]
    data: str
    model_class: str
    parameters: int | None


@dataclass(frozen=True)
class DataSource:
    """What was found in one source of data, and what became of it; see `data.report.Reading`."""

    verb: str
    source: str
    found: int
    used: int
    left_out: dict[str, int]
    examples: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]


def read_starts(values: JSON) -> tuple[Start, ...]:
    """The starts in run.json; a file of a version that kept no history holds the settings of one.

    Raises:
        KeyError, TypeError, ValueError or AttributeError: The file is damaged.
    """
    entries = values.get("starts") or [{"step": 0, "settings": values}]
    return tuple(_start(entry) for entry in entries)


def _start(entry: JSON) -> Start:
    groups = dict(entry["settings"])
    model = dict(entry.get("model", {}))
    steps = entry.get("steps")
    parameters = model.get("parameters")
    return Start(
        date=str(entry.get("date", "")),
        step=int(entry["step"]),
        steps=None if steps is None else int(steps),
        processes=int(entry.get("num_processes", 1)),
        command=tuple(map(str, entry.get("command", []))),
        versions={str(name): str(version) for name, version in entry.get("versions", {}).items()},
        settings=_flat(groups),
        given=tuple(map(str, groups.get("given", []))),
        data=str(entry.get("identity", {}).get("digest", "")),
        model_class=str(model.get("class", "")),
        parameters=None if parameters is None else int(parameters),
    )


def _flat(groups: dict[str, Any]) -> dict[str, Any]:
    """Flag -> value over all groups of flags; the first group wins, as in `training.arguments.flat`."""
    found: dict[str, Any] = {}
    for name, value in groups.items():
        for flag, setting in value.items() if isinstance(value, dict) else [(name, value)]:
            found.setdefault(str(flag), setting)
    found.pop("given", None)
    return found


def read_source(values: JSON) -> DataSource:
    """One source of the report on the data; raises as `read_starts`."""
    left_out = dict(values.get("left_out", {}))
    examples = dict(values.get("examples", {}))
    return DataSource(
        verb=str(values["verb"]),
        source=str(values["source"]),
        found=int(values["found"]),
        used=int(values["used"]),
        left_out={str(reason): int(number) for reason, number in left_out.items()},
        examples={str(reason): tuple(map(str, names)) for reason, names in examples.items()},
        notes=tuple(map(str, values.get("notes", []))),
    )
