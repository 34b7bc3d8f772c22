"""Power-function averages on disk: in checkpoints, and as snapshots that other widths are put together from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
        tensors: Name -> average; of a file, they are read when they are used.
    """

    profile: Profile
    tensors: NamedTensors


def write_state(path: str | Path, state: dict[str, Any]) -> None:
    """Write the state of a `PowerAverage`; a crash leaves the old file or the new one.

    Args:
        path: Of the file; its folder must exist.
        state: As `PowerAverage.state_dict` returns it.
    """
    temporary = Path(f"{path}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def read_state(path: str | Path) -> dict[str, Any]:
    """What `write_state` has written; tensors are read when they are used.

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


def check_fits(state: Mapping[str, Any], averages: Mapping[float, NamedTensors]) -> None:
    """Refuse a state of other averages than a run tracks.

    Args:
        state: Of a `PowerAverage`.
        averages: Width -> averages of the run.

    Raises:
        StateError: Widths, names, shapes or types differ.
    """
    if state["widths"] != list(averages):
        raise StateError(
            f"the checkpoint holds averages of the widths {state['widths']}, this run tracks {list(averages)}: use "
            "the same widths. Others are put together at the end, average.reconstruct(width, paths)."
        )
    for mine, loaded in zip(averages.values(), state["averages"]):
        _check_alike(mine, loaded, "the checkpoint's averages and this run's")


def snapshots_in(state: dict[str, Any]) -> list[Snapshot]:
    """The averages of a state, one a width."""
    found = []
    for width, tensors in zip(state["widths"], state["averages"]):
        found.append(Snapshot(Profile(exponent_of(width), state["step"]), tensors))
    return found


def reconstruct(snapshots: Sequence[Snapshot], width: float, step: int) -> NamedTensors:
    """An average of a width that was not tracked, from snapshots of those that were.

    Args:
        snapshots: Of one run; duplicates count once, and later ones than `step` not at all.
        width: Relative width.
        step: The step at which the average is wanted.

    Returns:
        Name -> average on the CPU, of the snapshots' type.

    Raises:
        ConfigError: The width cannot be put together from them, or does not exist.
        StateError: There is no snapshot, or they are of different parameters.
    """
    kept = {snapshot.profile: snapshot for snapshot in snapshots if 0 < snapshot.profile.step <= step}
    if not kept:
        raise StateError(f"there is no snapshot up to step {step}: give the files that PowerAverage.save wrote.")
    first = next(iter(kept.values())).tensors
    for snapshot in kept.values():
        _check_alike(first, snapshot.tensors, "snapshots")
    wanted = Profile(exponent_of(width), step)
    factors = coefficients(wanted, list(kept))
    result = {}
    for name, example in first.items():
        total = torch.zeros(example.shape, dtype=torch.float64)
        for factor, snapshot in zip(factors, kept.values()):
            total.add_(snapshot.tensors[name].cpu(), alpha=factor)
        result[name] = total.to(example.dtype)
    return result


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
