"""One decision for all ranks: scores are averaged, the choice is made once, an error on one rank is raised on all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from autoprog_diffusion.growth.backends.ranks import gather_object, rank, world_size
from autoprog_diffusion.growth.errors import SearchError

from .objective import MEASURES, Decision, Score


Result = TypeVar("Result")


def agree(score: Callable[[], list[Score]], decide: Callable[[list[Score]], Decision]) -> Decision:
    """Score on every rank's own data, average over ranks, decide on rank 0 and broadcast.

    Args:
        score: Computes this rank's scores, one per candidate in the same order everywhere.
        decide: Averaged scores -> index of the choice, and the scores with the objective's value.

    Raises:
        SearchError: On every rank, if `score` or `decide` raised on one; the message names rank and error.
    """
    averaged = list(map(average, zip(*gather(score))))
    return decide_once(lambda: decide(averaged))


def gather(compute: Callable[[], Result]) -> list[Result]:
    """Call `compute` on every rank and return all results, in the order of ranks.

    Raises:
        SearchError: On every rank, if it raised on one. A single process raises the original error.
    """
    if world_size() == 1:
        return [compute()]
    failure = None
    try:
        outcome = (compute(), "")
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks wait for an answer
        failure = error
        outcome = (None, f"rank {rank()}: {type(error).__name__}: {error}")
    values, texts = zip(*gather_object(outcome))
    errors = list(filter(None, texts))
    if errors:
        raise SearchError("the schedule search failed on " + "; ".join(errors)) from failure
    return list(values)


def decide_once(decide: Callable[[], Result]) -> Result:
    """Call `decide` on rank 0 and return its result on every rank.

    Raises:
        SearchError: On every rank, if it raised on rank 0. A single process raises the original error.
    """
    decisions: list[Any] = gather(lambda: decide() if rank() == 0 else None)
    return decisions[0]


def average(scores: Sequence[Score]) -> Score:
    """Average one candidate's scores over ranks; a nan or inf on one rank stays one."""
    means = {name: sum(getattr(score, name) for score in scores) / len(scores) for name in MEASURES}
    return replace(scores[0], **means)
