"""From scores to a choice: the paper's rank vote, gain per second, and the honest baselines."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .candidates import Candidate


@dataclass(frozen=True)
class Score:
    """What is known of a candidate when it is chosen or not.

    Attributes:
        candidate: The candidate.
        cost: Of a training step: seconds where measured, FLOPs where counted.
        kappa: NTK condition number; lower is better.
        zico: ZiCo; higher is better.
        gain: Expected loss decrease of a preconditioned step; higher is better.
        value: The objective's own score, lower is better; set by `choose`.
    """

    candidate: Candidate
    cost: float
    kappa: float
    zico: float
    gain: float
    value: float = math.nan

    @property
    def degenerate(self) -> bool:
        """Whether a score is missing: singular kernel, nan, batch of one."""
        return not all(math.isfinite(number) for number in (self.cost, self.kappa, self.zico, self.gain))

    def to_dict(self) -> dict[str, Any]:
        """The score as plain JSON types, infinities and nans as text."""
        values = asdict(self)
        candidate = values.pop("candidate")
        numbers = {key: value if math.isfinite(value) else str(value) for key, value in values.items()}
        return {**candidate, "blocks": list(self.candidate.blocks), **numbers, "degenerate": self.degenerate}


def ranks(values: Sequence[float]) -> list[float]:
    """Rank of every value, 1 for the smallest; equal ones (within 1e-6 relative) share the best rank; nan ranks last.

    Source: AutoProg-Zero's vote; its ties are within an absolute 1e-6, which depends on the unit of time.
    """
    clean = [math.inf if math.isnan(value) else value for value in values]

    def beats(other: float, value: float) -> bool:
        return other < value and not math.isclose(other, value, rel_tol=1e-6, abs_tol=0.0)

    return [1.0 + sum(beats(other, value) for other in clean) for value in clean]


def rank_vote(scores: Sequence[Score]) -> list[float]:
    """1.0 rank(time) + 0.5 rank(kappa) + 0.5 rank(ZiCo) of every candidate (AutoProg-Zero)."""
    cost, kappa = ranks([s.cost for s in scores]), ranks([s.kappa for s in scores])
    zico = ranks([-s.zico for s in scores])
    return [c + 0.5 * k + 0.5 * z for c, k, z in zip(cost, kappa, zico)]


def gain_per_cost(scores: Sequence[Score]) -> list[float]:
    """Minus the expected loss decrease per cost, in units of the dearest candidate's: how fast a candidate learns."""
    dearest = max((s.cost for s in scores), default=0.0)
    return [-s.gain * dearest / s.cost if s.cost > 0 else math.inf for s in scores]


OBJECTIVES: dict[str, Callable[[Sequence[Score]], list[float]]] = {
    "rank_vote": rank_vote,
    "gain_per_cost": gain_per_cost,
}


def choose(objective: str, scores: Sequence[Score], seed: int) -> tuple[int, list[Score]]:
    """Index of the chosen candidate, and the scores with the objective's value; the smallest value wins.

    A degenerate candidate never wins while another is sound. Ties go to the cheaper one, then to the first. When all
    are degenerate the cheapest is taken, for want of anything better.

    Args:
        objective: A key of `OBJECTIVES`, or `random`.
        scores: One per candidate.
        seed: Of the random choice.
    """
    if objective == "random":
        pick = random.Random(seed).randrange(len(scores))
        return pick, [replace(score, value=float(index != pick)) for index, score in enumerate(scores)]
    usable = [s for s in scores if not _unusable(objective, s)]
    values = dict(zip(map(id, usable), OBJECTIVES[objective](usable)))
    valued = [replace(s, value=values.get(id(s), math.inf)) for s in scores]
    order = sorted(range(len(scores)), key=lambda i: (valued[i].value, valued[i].cost, i))
    return order[0], valued


def _unusable(objective: str, score: Score) -> bool:
    if objective == "gain_per_cost":
        # A singular kernel says nothing about the gain, which does not use it.
        return not (math.isfinite(score.gain) and math.isfinite(score.cost))
    return score.degenerate
