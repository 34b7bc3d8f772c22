"""How many images an evaluation takes, and how often there is one, so that all take a stated share of the run.

Costs are counted in forward passes of one image, not measured: a plan that followed a clock would evaluate at other
steps in every run, and keep other weights as the best.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from autoprog_diffusion.growth.plan import GrowthPlan


LEAST_SAMPLES = 48  # images times draws of an evaluation: with fewer its noise hides what an evaluation is for
LEAST_DRAWS = 2
MOST_DRAWS = 4
MOST_EVALUATIONS = 50  # of a run: a longer one has larger evaluations instead
WITH_START = 4  # with as many evaluations, one is made before the first step


@dataclass(frozen=True)
class Pace:
    """Size and interval of the evaluations of a run.

    Attributes:
        images: Images of an evaluation.
        draws: How often each is taken.
        every: Optimizer steps between evaluations; the last step has one, too.
        start: Whether there is one before the first step.
    """

    images: int
    draws: int
    every: int
    start: bool

    def due(self, step: int, last: int) -> bool:
        """Whether there is an evaluation after so many optimizer steps, of a run that has `last` of them."""
        if step == 0:
            return self.start
        return step == last or step % self.every == 0

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def choose_pace(*, images: int, steps: int, batch: int, cost: float, share: float, every: int | None = None) -> Pace:
    """The pace of a run.

    Args:
        images: Held-out images that there are.
        steps: Optimizer steps of the run.
        batch: Images of an optimizer step, over all processes.
        cost: Of training on one image, in forward passes (`mean_cost`).
        share: Of the run's cost that evaluations may take.
        every: Optimizer steps between evaluations, instead of what the share allows.
    """
    budget = share * steps * batch * cost
    samples = budget / (MOST_EVALUATIONS if every is None else max(1, steps // every))
    samples = max(samples, LEAST_SAMPLES)
    taken = max(1, min(images, int(samples) // LEAST_DRAWS))
    draws = min(MOST_DRAWS, max(LEAST_DRAWS, int(samples) // taken))
    count = int(budget / (taken * draws))
    count = max(1, min(count, MOST_EVALUATIONS))
    start = every is not None or count >= WITH_START
    if every is None:
        every = math.ceil(steps / (count - start))
    return Pace(taken, draws, every=every, start=start)


def mean_cost(plan: GrowthPlan) -> float:
    """Mean cost of training on one image over a plan, in forward passes at full resolution."""
    return cost_between(plan, 0, plan.num_training_steps) / plan.num_training_steps


def cost_between(plan: GrowthPlan, first: int, last: int) -> float:
    """Cost of the optimizer steps from `first` to before `last`, each on one image, in forward passes."""
    total = 0.0
    for stage, steps in zip(plan.stages, plan.steps_between(first, last)):
        share = len(stage.blocks) / plan.num_blocks
        side = stage.resolution if isinstance(stage.resolution, float) else 1.0
        # A forward pass, and a backward pass of twice its cost through what trains.
        total += steps * (1 + 2 * share) * side**2
    return total
