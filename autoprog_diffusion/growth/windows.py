"""Which blocks every window of a sweep trains: parts of the model with as many parameters each as its blocks allow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from .config import GrowthConfig


def window_blocks(config: GrowthConfig, num_blocks: int, sizes: Sequence[int] | None = None) -> list[tuple[int, ...]]:
    """Indices of the blocks in every window of one sweep; together they are all blocks.

    Without a `window_share` no block is in two of them; more windows than blocks hold one block each, some of them the
    same. With one, blocks on both sides join a window while it does not hold more than that share of the parameters.

    Args:
        config: With the number of windows, their order and share.
        num_blocks: Number of blocks of the model.
        sizes: Number of parameters of every block; None takes all blocks for equal.

    Example:
        >>> window_blocks(GrowthConfig(direction="window", num_stages=3), 8)
        [(0, 1), (2, 3, 4), (5, 6, 7)]
        >>> window_blocks(GrowthConfig(direction="window", num_stages=2, order="prefix"), 4, [6, 1, 1, 2])
        [(1, 2, 3), (0,)]
    """
    sizes = [1] * num_blocks if sizes is None else sizes
    count = config.num_stages // config.sweeps
    # The order in which a sweep gets to the blocks.
    path = list(range(num_blocks))
    if config.order == "prefix":
        path.reverse()
    elif config.order == "interleaved":
        path.sort(key=lambda block: block % count)
    weights = [sizes[block] for block in path]
    parts = list(pairwise(even_cuts(weights, min(count, num_blocks))))
    most = (config.window_share or 0) * sum(weights)
    windows = []
    for window in range(count):
        first, last = parts[window * len(parts) // count]
        chosen = path[slice(*widened(weights, first, last, most))]
        windows.append(tuple(sorted(chosen)))
    return windows


def even_cuts(weights: Sequence[int], count: int) -> list[int]:
    """Where to cut a row of weights into `count` parts, none of them empty, with the least sum of squared weights.

    Returns:
        `count + 1` positions, from 0 to the number of weights.

    Example:
        >>> even_cuts([1, 1, 1, 6, 6, 1], 3)
        [0, 3, 4, 6]
    """
    total = [0, *accumulate(weights)]
    ends = range(len(weights) + 1)
    # Per end: the least cost of as many parts as there are by now, and where the last of them begins.
    costs: list[float] = [0.0 if end == 0 else float("inf") for end in ends]
    begins = []
    for _ in range(count):
        options = [[(costs[begin] + (total[end] - total[begin]) ** 2, begin) for begin in range(end)] for end in ends]
        best = [min(some, default=(float("inf"), 0)) for some in options]
        costs = [cost for cost, _ in best]
        begins.append([begin for _, begin in best])
    cuts = [len(weights)]
    for part in reversed(begins):
        cuts.append(part[cuts[-1]])
    return cuts[::-1]


def widened(weights: Sequence[int], first: int, last: int, most: float) -> tuple[int, int]:
    """A part of a row of weights, and neighbours on both sides in turns while it does not weigh more than `most`.

    Example:
        >>> widened([1] * 8, 2, 4, most=4), widened([1] * 8, 6, 8, most=4)
        ((1, 5), (4, 8))
    """
    later = True
    refused = 0
    while refused < 2:
        begin, end = (first, last + 1) if later else (first - 1, last)
        fits = begin >= 0 and end <= len(weights) and sum(weights[begin:end]) <= most * (1 + 1e-9)
        if fits:
            first, last = begin, end
        refused = 0 if fits else refused + 1
        later = not later
    return first, last
