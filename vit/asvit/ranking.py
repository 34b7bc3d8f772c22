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
    """
    sums = [math.inf if item.degenerate else 0.0 for item in evaluations]
    for name, sign in SIGNS.items():
        values = [-sign * getattr(item, name) for item in evaluations]
        # In n log n, unlike `search.objective.ranks`: a search ranks all it has seen in every step.
        ordered = sorted(value for value, item in zip(values, evaluations) if not item.degenerate)
        for index, value in enumerate(values):
            sums[index] += 1 + bisect_left(ordered, value)  # equal ones share the best rank
    return sums


def best(evaluations: Evaluations) -> int | None:
    """Index of the network with the smallest rank sum; None where all are degenerate.

    Among tied networks the score with the larger relative range over the sound candidates, (max - min) / |max|,
    decides, in its own direction; then the order. Source: As-ViT's scaling rule as intended; the released code
    compares only the first two of the tied and takes the smaller value also of the score that should be large.
    """
    sums = rank_sums(evaluations)
    least = min(sums, default=math.inf)
    if least == math.inf:
        return None
    tied = [index for index, value in enumerate(sums) if value == least]
    name = max(SIGNS, key=lambda score: _relative_range(evaluations, score))
    return max(tied, key=lambda index: SIGNS[name] * getattr(evaluations[index], name))  # the first of equal ones


def order(evaluations: Evaluations) -> list[int]:
    """Indices from the best rank sum to the worst; ties in the order given, degenerate networks last."""
    sums = rank_sums(evaluations)
    return sorted(range(len(sums)), key=sums.__getitem__)


def _relative_range(evaluations: Evaluations, name: str) -> float:
    values = [getattr(item, name) for item in evaluations if not item.degenerate]
    largest = max(map(abs, values))
    return (max(values) - min(values)) / largest if largest > 0 else 0.0
