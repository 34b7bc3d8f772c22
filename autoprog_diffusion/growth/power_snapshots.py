"""Power-function averages on disk: in checkpoints, and as snapshots that other widths are put together from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .backends.shard_files import read_shards, stored_shards, write_shards
from .errors import StateError
from .power_function import Profile, coefficients, exponent_of


VERSION = 1
FILE = "power_average.pt"  # in a checkpoint
_KEYS = {"version", "step", "growth_step", "widths", "averages"}

NamedTensors = dict[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """One average at one step.

    Attributes:
        profile: How much every step counts in it.
        read: Gives name -> average, whole or cut as in a state; of a file, it reads them.
    """

    profile: Profile
    read: Callable[[], NamedTensors]


def write_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write the state of a `PowerAverage`; a crash leaves the old file or the new one.

    Args:
        path: Of the file; its folder must exist.
        state: As `PowerAverage.state_dict` returns it.
    """
    temporary = Path(f"{path}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def write_cut_state(path: Path, state: dict[str, Any], *, head: bool) -> None:
    """Write a state whose tensors are cut between processes: the tensors into a folder beside `path`.

    Args:
        path: Of the file; its folder must exist.
        state: As `PowerAverage.state_dict` returns it.
        head: Whether this process writes the file; all write their shards.
    """
    if head:
        write_state(path, {**state, "averages": None})
    tensors = {}
    for index, averages in enumerate(state["averages"]):
        tensors.update({_key(index, name): average for name, average in averages.items()})
    write_shards(_folder(path), tensors)


def read_cut_averages(path: Path, index: int, room: NamedTensors) -> NamedTensors:
    """The averages of one width that `write_cut_state` has written; where it was cut, all processes must call it.

    Args:
        path: Of the file.
        index: Of the width.
        room: Name -> tensor that is read into, cut in any way.

    Raises:
        StateError: Names, shapes or types differ.
    """
    start = _key(index, "")
    stored = {name: each for name, each in stored_shards(_folder(path)).items() if name.startswith(start)}
    wanted = {_key(index, name): each for name, each in room.items()}
    _check_alike(wanted, stored, f"{path} and this run's averages")
    read_shards(_folder(path), wanted)
    return room


def reader(path: Path, state: dict[str, Any], room: Callable[[], NamedTensors]) -> Callable[[int], NamedTensors]:
    """What gives the averages of the width of an index, whole or cut, whichever way a file was written.

    Args:
        path: Of the file.
        state: As `read_state` returns it.
        room: Makes name -> tensor that averages are read into where they were cut.
    """
    if state["averages"] is None:
        return lambda index: read_cut_averages(path, index, room())
    return lambda index: state["averages"][index]


def read_state(path: str | Path) -> dict[str, Any]:
    """What `write_state` has written; tensors are read when they are used, and are None where they lie beside it.

    Raises:
        StateError: It is no file of averages.
    """
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    check_kind(state, str(path))
    return state


def check_kind(state: Any, origin: str) -> None:
    """Refuse what is no state of a `PowerAverage`.

    Args:
        state: What was loaded.
        origin: Where it is from, for the message.

    Raises:
        StateError: It lacks something, or has another version.
    """
    missing = sorted(_KEYS - state.keys()) if isinstance(state, dict) else sorted(_KEYS)
    if missing:
        raise StateError(f"{origin} is no state of a PowerAverage, it lacks {missing}: take one that its save wrote.")
    if state["version"] != VERSION:
        raise StateError(
            f"{origin} has version {state['version']!r} of averages; this library reads {VERSION}: use the library "
            "version that wrote it."
        )


def check_fits(state: Mapping[str, Any], widths: Sequence[float], room: NamedTensors) -> None:
    """Refuse a state of other averages than a run tracks.

    Args:
        state: Of a `PowerAverage`.
        widths: That the run tracks.
        room: Name -> tensor of the shape and type of every average.

    Raises:
        StateError: Widths, names, shapes or types differ.
    """
    if state["widths"] != list(widths):
        raise StateError(
            f"the checkpoint holds averages of the widths {state['widths']}, this run tracks {list(widths)}: use "
            "the same widths. Others are put together at the end, average.reconstruct(width, paths)."
        )
    if state["averages"] is None:
        raise StateError(
            f"the averages of this state lie in a folder beside its file ({FILE}), cut between processes: let the "
            "accelerator load the checkpoint."
        )
    for loaded in state["averages"]:
        _check_alike(room, loaded, "the checkpoint's averages and this run's")


def snapshots_in(state: dict[str, Any], read: Callable[[int], NamedTensors]) -> list[Snapshot]:
    """The averages of a state, one a width.

    Args:
        state: Of a `PowerAverage`.
        read: Gives the averages of the width of an index.
    """
    found = []
    for index, width in enumerate(state["widths"]):
        found.append(Snapshot(Profile(exponent_of(width), state["step"]), partial(read, index)))
    return found


def reconstruct(
    snapshots: Sequence[Snapshot],
    width: float,
    step: int,
    parts: Callable[[NamedTensors], Iterable[tuple[str, Tensor]]],
) -> NamedTensors:
    """An average of a width that was not tracked, from snapshots of those that were.

    Args:
        snapshots: Of one run; duplicates count once, and later ones than `step` not at all.
        width: Relative width.
        step: The step at which the average is wanted.
        parts: Gives the names of a snapshot, and what this process holds of each tensor.

    Returns:
        Name -> average on the CPU, of the snapshots' type, or what this process holds of it.

    Raises:
        ConfigError: The width cannot be put together from them, or does not exist.
        StateError: There is no snapshot, or they are of different parameters.
    """
    kept = {snapshot.profile: snapshot for snapshot in snapshots if 0 < snapshot.profile.step <= step}
    if not kept:
        raise StateError(f"there is no snapshot up to step {step}: give the files that PowerAverage.save wrote.")
    factors = coefficients(Profile(exponent_of(width), step), list(kept))
    first: NamedTensors = {}  # for shapes and types alone
    totals: NamedTensors = {}
    # Snapshot by snapshot: of those that are cut no more than one is in memory at a time.
    for factor, snapshot in zip(factors, kept.values()):
        tensors = snapshot.read()
        first = first or {name: each.new_empty(each.shape, device="meta") for name, each in tensors.items()}
        _check_alike(first, tensors, "snapshots")
        for name, value in parts(tensors):
            mine = value.cpu()
            if name not in totals:
                totals[name] = torch.zeros(mine.shape, dtype=torch.float64)
            totals[name].add_(mine, alpha=factor)
    return {name: totals.pop(name).to(first[name].dtype) for name in first}


def _folder(path: Path) -> Path:
    """Where the shards of a file lie."""
    return path.with_suffix("")


def _key(index: int, name: str) -> str:
    """Name of an average in a folder of shards.

    Args:
        index: Of its width.
        name: Of its parameter.
    """
    return f"{index}.{name}"


def _check_alike(some: NamedTensors, others: NamedTensors, what: str) -> None:
    """Refuse, with `StateError`, averages of different parameters."""
    kinds = [{name: (tuple(each.shape), each.dtype) for name, each in tensors.items()} for tensors in (some, others)]
    differing = sorted(name for name in {*some, *others} if kinds[0].get(name) != kinds[1].get(name))
    if differing:
        name = differing[0]
        raise StateError(
            f"{what} differ in {len(differing)} tensors, for example {name}: {kinds[0].get(name)} and "
            f"{kinds[1].get(name)}. Use those of one model with one stage embedding, and one dtype."
        )
