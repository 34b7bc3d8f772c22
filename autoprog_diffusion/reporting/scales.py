"""Axes of a chart: where a value lies, and which values get a label."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


WIDTH = 1000.0  # of a chart's drawing; the page stretches it
HEIGHT = 400.0
LARGEST = 1e100


def drawable(*values: float) -> bool:
    """Whether all values can be drawn: they are finite, and no measurement is as large as what is left out."""
    return all(math.isfinite(value) and abs(value) < LARGEST for value in values)


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
        high = self._scaled(self.high)
        if high == low:
            # Numbers so large that the next one is the same.
            return 0.0
        share = (self._scaled(value) - low) / (high - low)
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
    at_zero = from_zero and low >= 0
    if at_zero:
        low = 0.0
    room = 0.04 * (high - low)
    if room == 0:
        # All values are the same.
        room = abs(high) / 2
    if room == 0:
        room = 0.5
    if not at_zero:
        low -= room
    return Axis(low, high + room)


def linear_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two values.

    Example:
        >>> linear_ticks(0, 640)
        [0.0, 200.0, 400.0, 600.0]
    """
    rough = (high - low) / about
    if rough == 0:
        return [low]
    digits = math.floor(math.log10(rough))
    power = 10.0**digits
    steps = [factor * power for factor in (1, 2, 5, 10)]
    step = next(size for size in steps if size >= 0.999 * rough)
    # A tick at the very end of the axis counts, whatever rounding says.
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    ticks = []
    for number in range(first, last + 1):
        ticks.append(round(number * step, 12 - digits))
    return ticks


def _log_ticks(low: float, high: float) -> list[float]:
    """Values of 1, 2 and 5 times powers of ten; of a narrow axis those of a linear one."""
    first = math.floor(math.log10(low))
    last = math.ceil(math.log10(high))
    # Three decades have room for three labels each.
    digits = (1, 2, 5) if high / low < 2000 else (1,)
    inside = []
    for power in range(first, last + 1):
        for digit in digits:
            value = digit * 10.0**power
            if low <= value <= high:
                inside.append(value)
    if len(inside) < 3:
        return linear_ticks(low, high)
    every = -(-len(inside) // 10)
    return inside[::every]


def tick_label(value: float) -> str:
    """A value of an axis in words."""
    magnitude = abs(value)
    if magnitude == 0:
        return "0"
    if magnitude >= 1e6 or magnitude < 1e-3:
        return f"{value:.3g}"
    if magnitude >= 1:
        return f"{value:,.6g}"
    return f"{value:.4g}"


def thinned(values: Sequence[float], most: int = 400) -> list[tuple[float, float]]:
    """At most so many points of a long column: the position, counted from 1, and the mean of every part of it."""
    length = len(values)
    parts = min(most, length)
    points = []
    for part in range(parts):
        start = part * length // parts
        stop = (part + 1) * length // parts
        inside = [value for value in values[start:stop] if drawable(value)]
        if not inside:
            continue
        middle = (start + 1 + stop) / 2
        mean = math.fsum(inside) / len(inside)
        points.append((middle, mean))
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
            average += (1 - weight) * (value - average)
            total += (1 - weight) * (1 - total)
        if total:
            result.append(round(average / total, 12))
        else:
            result.append(math.nan)
    return result
