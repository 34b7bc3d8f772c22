"""Curves that can be read."""

from __future__ import annotations

from collections.abc import Iterable


def smooth(values: Iterable[float], weight: float = 0.98) -> list[float]:
    """Exponential moving average, corrected for its start.

    Example:
        >>> [round(value, 6) for value in smooth([2.0, 2.0, 2.0])]
        [2.0, 2.0, 2.0]
    """
    result, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        result.append(total / norm)
    return result
