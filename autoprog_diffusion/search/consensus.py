"""One decision for all ranks: scores averaged, chosen once, and a failure anywhere raised everywhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from autoprog_diffusion.growth.backends.ranks import world_size
from autoprog_diffusion.growth.errors import SearchError

from .objective import Score


Result = TypeVar("Result")


def agree(
    score: Callable[[], list[Score]], decide: Callable[[list[Score]], tuple[int, list[Score]]]
) -> tuple[int, list[Score]]:
    """Score on every rank's own data, average over ranks, decide on rank 0 and broadcast.

    Args:
        score: This rank's scores, one per candidate in the same order everywhere.
        decide: Averaged scores -> index of the choice, and the scores with the objective's value.

    Raises:
        SearchError: On every rank, where `score` or `decide` raised on one; the message names rank and error.
    """
    everywhere = gather(score)
    return decide_once(lambda: decide([average(column) for column in zip(*everywhere)]))


def gather(compute: Callable[[], Result]) -> list[Result]:
    """What `compute` gives on every rank, in the order of ranks.

    Raises:
        SearchError: On every rank, where it raised on one; alone, what it raised.
    """
    if world_size() == 1:
        return [compute()]
    outcome: Any = None
    failure: BaseException | None = None
    try:
        outcome = ("value", compute())
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks wait for an answer
        failure, outcome = error, ("error", f"{type(error).__name__}: {error}")
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, outcome)
    failed = [f"rank {rank}: {value}" for rank, (kind, value) in enumerate(gathered) if kind == "error"]
    if failed:
        raise SearchError("the schedule search failed on " + "; ".join(failed)) from failure
    return [value for _, value in gathered]


def decide_once(decide: Callable[[], Result]) -> Result:
    """What `decide` gives on rank 0, on every rank.

    Raises:
        SearchError: On every rank, where it raised on rank 0; alone, what it raised.
    """
    if world_size() == 1:
        return decide()
    decision: Any = [None]
    if dist.get_rank() == 0:
        try:
            decision[0] = ("value", decide())
        except Exception as error:  # noqa: BLE001 - as above
            decision[0] = ("error", f"{type(error).__name__}: {error}")
    dist.broadcast_object_list(decision, src=0)
    kind, value = decision[0]
    if kind == "error":
        raise SearchError(f"the schedule search failed on rank 0: {value}")
    return value


def average(scores: tuple[Score, ...]) -> Score:
    """The mean over ranks of one candidate's scores; a nan or inf on one rank stays one."""
    count = len(scores)
    means = {name: sum(getattr(s, name) for s in scores) / count for name in ("cost", "kappa", "zico", "gain")}
    return replace(scores[0], **means)


def all_reduce_bandwidth(device: torch.device, size: int = 2**22) -> float:
    """Bytes per second of averaging a float32 gradient over all ranks, measured on `size` values."""
    payload = torch.zeros(size, device=device)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        dist.all_reduce(payload)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return payload.numel() * payload.element_size() / min(seconds)
