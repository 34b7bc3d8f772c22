"""Comparing networks by their two scores: rank sums, and the rule for ties."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from .score_cache import Evaluation


# Score -> +1 where higher is better, -1 where lower is.
SIGNS = {"ntk": -1, "length": 1}


def rank_sums(evaluations: Sequence[Evaluation]) -> list[float]:
    """Sum over the scores of a network's rank, 2 for one that is best in both; inf where it is degenerate.

    Degenerate networks are ranked behind all others and do not move the others' ranks.
    """
    sound = [item for item in evaluations if not item.degenerate]
    columns = [_ranks([-sign * getattr(item, name) for item in sound]) for name, sign in SIGNS.items()]
    sums = iter([sum(row) for row in zip(*columns)])
    return [math.inf if item.degenerate else next(sums) for item in evaluations]


def best(evaluations: Sequence[Evaluation]) -> int | None:
    """Index of the network with the smallest rank sum; None where all are degenerate.

    Among tied networks the score with the larger relative range over the sound candidates, (max - min) / |max|,
    decides, in its own direction; then the order. Source: As-ViT's scaling rule as intended; the released code
    compares only the first two of the tied and takes the smaller value also of the score that should be large.
    """
    sums = rank_sums(evaluations)
    least = min(sums, default=math.inf)
    if math.isinf(least):
        return None
    tied = [index for index, value in enumerate(sums) if math.isclose(value, least, rel_tol=1e-9)]
    if len(tied) == 1:
        return tied[0]
    name = max(SIGNS, key=lambda score: _relative_range(evaluations, score))
    return max(tied, key=lambda index: (SIGNS[name] * getattr(evaluations[index], name), -index))


def order(evaluations: Sequence[Evaluation]) -> list[int]:
    """Indices from the best rank sum to the worst; ties in the order given, degenerate networks last."""
    sums = rank_sums(evaluations)
    return sorted(range(len(sums)), key=lambda index: (sums[index], index))


def _ranks(values: Sequence[float]) -> list[int]:
    """Rank of every value, 1 for the smallest; equal ones share the best rank.

    As `search.objective.ranks` without its tolerance and in n log n: a search ranks all it has seen in every step.
    """
    ordered = sorted(values)
    return [1 + bisect_left(ordered, value) for value in values]


def _relative_range(evaluations: Sequence[Evaluation], name: str) -> float:
    values = [getattr(item, name) for item in evaluations if not item.degenerate]
    largest = max(abs(value) for value in values)
    return (max(values) - min(values)) / largest if largest > 0 else 0.0
