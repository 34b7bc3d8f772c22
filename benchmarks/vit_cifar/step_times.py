"""CPU time of a step of every network that the runs trained, side by side on one machine.

Runs take hours, with other neighbours in every hour and perhaps on several machines: their own CPU times cannot be
compared. Here the networks take turns, and the median over the rounds counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Network:
    """What a step's time depends on.

    Attributes:
        blocks: Its depth.
        side: Of its pictures, in pixels.
        stride: Pixels from one token to the next.
    """

    blocks: int
    side: int
    stride: int

    def __str__(self) -> str:
        return f"{self.blocks} blocks, {self.side} pixels, stride {self.stride}"


WHOLE = Network(8, 32, 8)


def network_of(stage: Mapping[str, Any], strides: Sequence[int] | None) -> Network:
    """The network of a stage of a run; `strides` of its method, None for the model's own."""
    stride = WHOLE.stride if strides is None else strides[stage["stage"]]
    return Network(round(stage["blocks"]), round(stage["resolution"]), stride)


def measure(
    networks: Iterable[Network], times: Callable[[Network], Sequence[float]], *, rounds: int
) -> dict[str, float]:
    """Median CPU seconds of a step of every network.

    Args:
        networks: All that are wanted.
        times: Trains a network for some steps: CPU seconds of every step.
        rounds: How often each takes its turn.
    """
    found: dict[str, list[float]] = {str(network): [] for network in networks}
    for _ in range(rounds):
        for network in networks:
            found[str(network)].append(median(times(network)[1:]))  # the first step warms up
    return {name: median(several) for name, several in found.items()}


def cpu_seconds(row: Mapping[str, Any], strides: Sequence[int] | None, steps: Mapping[str, float]) -> float:
    """CPU time of a run, had it been made where the networks were measured.

    A search is scaled by the whole model's steps in the same run, with which every run ends.

    Args:
        row: A run.
        strides: Of its method.
        steps: From `measure`.
    """
    last = row["stages"][-1]
    scale = steps[str(WHOLE)] * last["steps"] / last["cpu_seconds"]
    total = 0.0
    for stage in row["stages"]:
        own = stage["cpu_seconds"] * scale
        total += own if stage["searching"] else stage["steps"] * steps[str(network_of(stage, strides))]
    return total
