"""Comparing networks by their two scores: rank sums, and the rule for ties."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from .score_cache import Evaluation


Evaluations = Sequence[Evaluation]

# Score -> +1 where higher is better, -1 where lower is.
SIGNS = {"ntk": -1, "length": 1}


def rank_sums(evaluations: Evaluations) -> list[float]:
    """Sum over the scores of a network's rank, 2 for one that is best in both; inf where it is degenerate.

    Degenerate networks are ranked behind all others and do not move the others' ranks.

    Args:
        evaluations: Networks to compare with each other.

    Returns:
        One sum for every network, in their order.
    """
    sums = [math.inf if item.degenerate else 0.0 for item in evaluations]
    for name, sign in SIGNS.items():
        # From here on lower is better.
        values = [-sign * getattr(item, name) for item in evaluations]
        sound = [value for value, item in zip(values, evaluations) if not item.degenerate]
        # In n log n, unlike `search.objective.ranks`: a search ranks all it has seen in every step.
        sound.sort()
        for index, value in enumerate(values):
            better = bisect_left(sound, value)  # networks; equal ones share the best rank
            sums[index] += 1 + better
    return sums


def best(evaluations: Evaluations) -> int | None:
    """Index of the network with the smallest rank sum; None where all are degenerate.

    Among tied networks the score with the larger relative range over the sound candidates, (max - min) / |max|,
    decides, in its own direction; then the order. Source: As-ViT's scaling rule as intended; the released code
    compares only the first two of the tied and takes the smaller value also of the score that should be large.

    Args:
        evaluations: Networks to choose from.
    """
    sums = rank_sums(evaluations)
    least = min(sums, default=math.inf)
    if least == math.inf:
        return None
    tied = [index for index, value in enumerate(sums) if value == least]
    name = max(SIGNS, key=lambda score: _relative_range(evaluations, score))
    sign = SIGNS[name]
    # `max` gives the first of equal ones.
    return max(tied, key=lambda index: sign * getattr(evaluations[index], name))


def order(evaluations: Evaluations) -> list[int]:
    """Indices from the best rank sum to the worst; ties in the order given, degenerate networks last.

    Args:
        evaluations: Networks to compare with each other.
    """
    sums = rank_sums(evaluations)
    return sorted(range(len(sums)), key=sums.__getitem__)


def _relative_range(evaluations: Evaluations, name: str) -> float:
    """(max - min) / max |value| of one score; 0 where all are 0.

    Args:
        evaluations: Networks, at least one of them sound; degenerate ones do not count.
        name: Of the score.
    """
    values = [getattr(item, name) for item in evaluations if not item.degenerate]
    largest = max(map(abs, values))
    if largest == 0:
        return 0.0
    spread = max(values) - min(values)
    return spread / largest
