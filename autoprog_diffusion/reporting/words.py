"""Numbers in words, as the report writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


DASH = "\u2013"
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def duration(seconds: float | None) -> str:
    """A time in one or two units.

    Example:
        >>> [duration(value) for value in (0.0123, 4.26, 75, 3725, 90061)]
        ['12.3 ms', '4.3 s', '1 min 15 s', '1 h 2 min', '1 d 1 h']
    """
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    whole = round(seconds)
    for (large, name), (small, next_name) in pairwise(units):
        count, rest = divmod(whole, large)
        if count:
            smaller = rest // small
            return f"{count} {name} {smaller} {next_name}" if smaller else f"{count} {name}"
    return f"{whole} s"


def size(count: float | None) -> str:
    """A number of bytes.

    Example:
        >>> size(622526464), size(3 * 2**30)
        ('594 MiB', '3 GiB')
    """
    if count is None or not math.isfinite(count):
        return DASH
    if count < 2**30:
        return f"{count / 2**20:,.0f} MiB"
    return f"{count / 2**30:.3g} GiB"


def short(value: float | None, digits: int = 3) -> str:
    """A number with a prefix of its size.

    Example:
        >>> short(1499480064.0), short(412.0), short(None) == DASH
        ('1.5 G', '412', True)
    """
    if value is None or not math.isfinite(value):
        return DASH
    for factor, prefix in PREFIXES:
        if abs(value) >= factor:
            return f"{value / factor:.{digits}g} {prefix}"
    return f"{value:.{digits}g}"


def loss(value: float | None) -> str:
    """A loss, with four significant digits."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.4g}"


def percent(value: float | None) -> str:
    """A share in percent; no line ends between number and sign."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{'under 1' if 0 < value < 0.005 else f'{100 * value:.0f}'}\u00a0%"


def ratio(part: float | None, whole: float | None) -> float | None:
    """A part of a whole; None where one of them is not known."""
    return part / whole if part is not None and whole else None


def count(number: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> count(1, "stage"), count(1800, "image")
        ('1 stage', '1,800 images')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """Words with commas between, and `and` before the last.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
