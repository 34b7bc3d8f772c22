"""Candidates for the next stage, their scores, and the choice: the paper's rank vote, gain per cost, and baselines."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from operator import attrgetter

from autoprog_diffusion.growth.config import GrowthConfig
from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.growth.fixed import select_blocks
from autoprog_diffusion.growth.values import JSON, Resolution


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
    resolution: Resolution


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
        return not all(map(math.isfinite, attrgetter(*MEASURES)(self)))

    def to_dict(self) -> JSON:
        """The score as plain JSON types, infinities and nans as text."""
        values = asdict(self.candidate)
        values["blocks"] = list(self.candidate.blocks)
        for name in (*MEASURES, "value"):
            value = getattr(self, name)
            values[name] = value if math.isfinite(value) else str(value)
        values["degenerate"] = self.degenerate
        return values


Decision = tuple[int, list[Score]]  # index of the choice, and the scores with their values


def list_candidates(
    config: GrowthConfig,
    num_blocks: int,
    current: Iterable[int],
    resolutions: Sequence[Resolution],
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
    one_size = list(resolutions) == [1.0]
    found = {}  # candidate -> None; keeps the first of equal ones, in order
    for name, chosen in _named_sets(config, num_blocks).items():
        blocks = tuple(sorted({*chosen, *always}))
        if not training.issubset(blocks):
            continue
        for resolution in resolutions:
            label = name if one_size else f"{name} at {resolution}"
            found.setdefault(Candidate(label, blocks, resolution))
    if not found:
        raise SearchError(
            f"no candidate holds the blocks {sorted(training)} that train already: a search only opens blocks, give "
            "nested search_candidates that end in the full model."
        )
    return list(found)


def _named_sets(config: GrowthConfig, num_blocks: int) -> dict[str, Sequence[int]]:
    """Sets of block indices to choose from, by name: the levels of every order or the user's own, and all blocks."""
    full = range(num_blocks)
    sets = {}
    if config.search_candidates is None:
        smallest = config.min_trainable
        levels = max(1, round(1 / smallest))
        for order, level in product(config.search_orders, range(1, levels)):
            sets[f"{order} {level}/{levels}"] = select_blocks(order, num_blocks, level / levels, smallest)
    for index, blocks in enumerate(config.search_candidates or ()):
        if not set(full).issuperset(blocks):
            raise SearchError(f"search_candidates: {blocks} names blocks outside 0 to {num_blocks - 1}.")
        sets[f"candidate {index}"] = blocks
    return {**sets, "full": full}


def ranks(values: Sequence[float]) -> list[float]:
    """Rank every value, 1 for the smallest; equal ones (within 1e-6 relative) share the best rank; nan ranks last.

    In AutoProg-Zero's released code values are equal within an absolute 1e-6, which depends on the unit of time.
    """
    known = [math.inf if math.isnan(value) else value for value in values]
    found = []
    for value in known:
        better = sum(other < value and not math.isclose(other, value, rel_tol=1e-6) for other in known)
        found.append(1.0 + better)
    return found


def rank_vote(scores: Sequence[Score]) -> list[float]:
    """Vote by ranks (AutoProg-Zero): 1.0 rank(cost) + 0.5 rank(kappa) + 0.5 rank(ZiCo) of every candidate."""
    by_cost = ranks([score.cost for score in scores])
    by_kappa = ranks([score.kappa for score in scores])
    by_zico = ranks([-score.zico for score in scores])  # higher is better
    return [cost + 0.5 * (kappa + zico) for cost, kappa, zico in zip(by_cost, by_kappa, by_zico)]


def gain_per_cost(scores: Sequence[Score]) -> list[float]:
    """Minus the expected loss decrease per cost, in units of the most expensive candidate: the speed of learning."""
    highest = max((score.cost for score in scores), default=0.0)
    values = []
    for score in scores:
        # Nothing can be said about a candidate without a cost: it comes last.
        values.append(-score.gain * highest / score.cost if score.cost > 0 else math.inf)
    return values


ObjectiveFunction = Callable[[Sequence[Score]], list[float]]  # scores -> values, lower is better
OBJECTIVES: dict[str, ObjectiveFunction] = {
    "rank_vote": rank_vote,
    "gain_per_cost": gain_per_cost,
    "fixed": lambda scores: [0.0] * len(scores),
}


def choose(objective: str, scores: Sequence[Score], seed: int) -> Decision:
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
    best = min(valued, key=lambda score: (score.value, score.cost))
    return valued.index(best), valued


def _is_usable(objective: str, score: Score) -> bool:
    """Whether a candidate has all the measurements that the objective looks at."""
    if objective == "gain_per_cost":
        # A singular kernel says nothing about the gain, which does not use it.
        return math.isfinite(score.gain + score.cost)
    return not score.degenerate
