"""Axes of a chart: where a value lies, and which values get a label."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


WIDTH = 1000.0  # of a chart's drawing; the page stretches it
HEIGHT = 400.0


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        low: Value at its start.
        high: Value at its end, above `low`.
        log: Whether it is logarithmic.
    """

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies, from 0 at the start to 1 at the end; values outside lie at the ends."""
        low = self._scaled(self.low)
        share = (self._scaled(value) - low) / (self._scaled(self.high) - low)
        return min(1.0, max(0.0, share))

    def ticks(self) -> list[float]:
        """Round values along the axis, about five."""
        if self.log:
            return _log_ticks(self.low, self.high)
        return linear_ticks(self.low, self.high)

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, self.low)) if self.log else value


def axis_of(values: Iterable[float], *, log: bool = False, from_zero: bool = False) -> Axis:
    """An axis that holds all values.

    Args:
        values: Finite numbers; none give an axis from 0 to 1.
        log: Whether to make it logarithmic where all values are above 0.
        from_zero: Whether it begins at 0.
    """
    known = list(values) or [0.0, 1.0]
    low = min(known)
    high = max(known)
    if log and low > 0 and high > 1.5 * low:
        return Axis(low * 0.97, high * 1.03, log=True)
    if from_zero:
        low = min(low, 0.0)
    room = 0.04 * (high - low)
    if not room:
        room = abs(high) / 2 or 0.5
    start = low if from_zero and low >= 0 else low - room
    return Axis(start, high + room)


def linear_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two values.

    Example:
        >>> linear_ticks(0, 640)
        [0.0, 200.0, 400.0, 600.0]
    """
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Values of 1, 2 and 5 times powers of ten; of a narrow axis those of a linear one."""
    first = math.floor(math.log10(low))
    last = math.ceil(math.log10(high))
    found = [digit * 10.0**power for power in range(first, last + 1) for digit in (1, 2, 5)]
    inside = [value for value in found if low <= value <= high]
    if len(inside) > 7:
        inside = [value for value in inside if math.log10(value).is_integer()]
    return inside if len(inside) >= 3 else linear_ticks(low, high, about=4)


def tick_label(value: float) -> str:
    """A value of an axis in words."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.6g}" if abs(value) >= 1 else f"{value:.4g}"


def thinned(values: Sequence[float], most: int = 400) -> list[tuple[float, float]]:
    """At most so many points of a long column: the position, counted from 1, and the mean of every part of it."""
    parts = min(most, len(values))
    points = []
    for part in range(parts):
        start = part * len(values) // parts
        stop = (part + 1) * len(values) // parts
        inside = [value for value in values[start:stop] if math.isfinite(value)]
        if inside:
            points.append(((start + 1 + stop) / 2, math.fsum(inside) / len(inside)))
    return points


def smooth(values: Iterable[float], weight: float) -> list[float]:
    """Exponential moving average, corrected for its start; what is not finite is passed over.

    Example:
        >>> smooth([2.0, 2.0, 2.0], weight=0.9)
        [2.0, 2.0, 2.0]
    """
    result: list[float] = []
    average = 0.0
    total = 0.0
    for value in values:
        if math.isfinite(value):
            average = weight * average + (1 - weight) * value
            total = weight * total + (1 - weight)
        result.append(average / total if total else math.nan)
    return [round(value, 12) for value in result]
