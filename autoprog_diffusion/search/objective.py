"""Candidates for the next stage, their scores, and the choice: the paper's rank vote, gain per cost, and baselines."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from autoprog_diffusion.growth.config import GrowthConfig
from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.growth.plan import select_blocks


MEASURES = ("cost", "kappa", "zico", "gain")


@dataclass(frozen=True)
class Candidate:
    """One possible next stage; candidates are equal if they train the same blocks at the same resolution.

    Attributes:
        name: For tables, for example `suffix 2/4 at 0.5`.
        blocks: Sorted indices of the blocks that train.
        resolution: Fraction (float) or pixels (int).
    """

    name: str = field(compare=False)
    blocks: tuple[int, ...]
    resolution: float | int


@dataclass(frozen=True)
class Score:
    """Measurements of a candidate, on which the choice is based.

    Attributes:
        candidate: The candidate.
        cost: Cost of a training step: seconds if measured, FLOPs if counted.
        kappa: NTK condition number; lower is better.
        zico: ZiCo; higher is better.
        gain: Expected loss decrease of a preconditioned step; higher is better.
        value: The objective's value, lower is better; `choose` sets it.
    """

    candidate: Candidate
    cost: float = 0.0
    kappa: float = 0.0
    zico: float = 0.0
    gain: float = 0.0
    value: float = math.nan

    @property
    def degenerate(self) -> bool:
        """Whether a score is missing: a singular kernel, a nan, a batch of one."""
        return not all(math.isfinite(getattr(self, name)) for name in MEASURES)

    def to_dict(self) -> dict[str, Any]:
        """The score as plain JSON types, infinities and nans as text."""
        values = asdict(self)
        candidate = values.pop("candidate")
        candidate["blocks"] = list(candidate["blocks"])
        for name, value in values.items():
            values[name] = value if math.isfinite(value) else str(value)
        return {**candidate, **values, "degenerate": self.degenerate}


def list_candidates(
    config: GrowthConfig,
    num_blocks: int,
    current: Iterable[int],
    resolutions: Sequence[float | int],
    always: Iterable[int] = (),
) -> list[Candidate]:
    """List every set of blocks that contains those of the current stage, at each of the resolutions.

    The sets are every level of every order (`config.search_orders`), or the user's own (`config.search_candidates`).
    Equal sets are listed once, under the first name.

    Args:
        config: Orders and levels, or sets.
        num_blocks: Number of blocks of the model.
        current: Indices of the blocks that train now.
        resolutions: Fractions (float) or pixels (int).
        always: Indices of blocks that every candidate trains.

    Raises:
        SearchError: No candidate contains the blocks that train already.
    """
    training = set(current)
    found: list[Candidate] = []
    for name, chosen in _named_sets(config, num_blocks).items():
        blocks = tuple(sorted({*chosen, *always}))
        for resolution in resolutions:
            label = name if list(resolutions) == [1.0] else f"{name} at {resolution}"
            candidate = Candidate(label, blocks, resolution)
            if training.issubset(blocks) and candidate not in found:
                found.append(candidate)
    if not found:
        raise SearchError(
            f"no candidate holds the blocks {sorted(training)} that train already: growth is monotone, give nested "
            "search_candidates that end in the full model."
        )
    return found


def _named_sets(config: GrowthConfig, num_blocks: int) -> dict[str, Sequence[int]]:
    full = range(num_blocks)
    sets: dict[str, Sequence[int]] = {}
    if config.search_candidates is None:
        levels = max(1, round(1 / config.min_trainable))
        for order, level in product(config.search_orders, range(1, levels)):
            share = level / levels
            sets[f"{order} {level}/{levels}"] = select_blocks(order, num_blocks, share, config.min_trainable)
    for index, blocks in enumerate(config.search_candidates or ()):
        if not set(full).issuperset(blocks):
            raise SearchError(f"search_candidates: {blocks} names blocks outside 0 to {num_blocks - 1}.")
        sets[f"candidate {index}"] = blocks
    sets["full"] = full
    return sets


def ranks(values: Sequence[float]) -> list[float]:
    """Rank every value, 1 for the smallest; equal ones (within 1e-6 relative) share the best rank; nan ranks last.

    In AutoProg-Zero's released code values are equal within an absolute 1e-6, which depends on the unit of time.
    """
    known = [math.inf if math.isnan(value) else value for value in values]

    def beats(other: float, value: float) -> bool:
        return other < value and not math.isclose(other, value, rel_tol=1e-6)

    return [1.0 + sum(beats(other, value) for other in known) for value in known]


def rank_vote(scores: Sequence[Score]) -> list[float]:
    """Vote by ranks (AutoProg-Zero): 1.0 rank(cost) + 0.5 rank(kappa) + 0.5 rank(ZiCo) of every candidate."""
    by_cost = ranks([score.cost for score in scores])
    by_kappa = ranks([score.kappa for score in scores])
    by_zico = ranks([-score.zico for score in scores])  # higher is better
    return [cost + 0.5 * kappa + 0.5 * zico for cost, kappa, zico in zip(by_cost, by_kappa, by_zico)]


def gain_per_cost(scores: Sequence[Score]) -> list[float]:
    """Minus the expected loss decrease per cost, in units of the most expensive candidate: the speed of learning."""
    highest = max((score.cost for score in scores), default=0.0)
    return [-score.gain * highest / score.cost if score.cost > 0 else math.inf for score in scores]


OBJECTIVES: dict[str, Callable[[Sequence[Score]], list[float]]] = {
    "rank_vote": rank_vote,
    "gain_per_cost": gain_per_cost,
    "fixed": lambda scores: [0.0] * len(scores),
}


def choose(objective: str, scores: Sequence[Score], seed: int) -> tuple[int, list[Score]]:
    """Choose the candidate with the smallest value; returns its index, and the scores with their values.

    A degenerate candidate never wins while another is sound. Ties go to the cheaper one, then to the first. If all
    are degenerate, the cheapest is taken, for want of anything better.

    Args:
        objective: A key of `OBJECTIVES`, or `random`.
        scores: One per candidate.
        seed: Seed of the random choice.
    """
    if objective == "random":
        values = {random.Random(seed).choice(scores): 0.0}
    else:
        usable = [score for score in scores if _is_usable(objective, score)]
        values = dict(zip(usable, OBJECTIVES[objective](usable)))
    valued = [replace(score, value=values.get(score, math.inf)) for score in scores]
    best = min(range(len(valued)), key=lambda index: (valued[index].value, valued[index].cost))
    return best, valued


def _is_usable(objective: str, score: Score) -> bool:
    if objective == "gain_per_cost":
        # A singular kernel says nothing about the gain, which does not use it.
        return math.isfinite(score.gain) and math.isfinite(score.cost)
    return not score.degenerate
