"""When to stop: the held-out loss has not fallen by more than its noise, and nothing to come can still lower it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoprog_diffusion.growth.plan import GrowthPlan

from .result import Evaluation, difference


# Schedules whose rate falls to the end: the loss falls with it.
DECAYING = ("linear", "cosine", "cosine_with_restarts", "polynomial")


@dataclass(frozen=True)
class Outlook:
    """What a run still has before it.

    Attributes:
        plan: Its stages.
        decays: Whether the learning rate falls to the end of the run.
        warmup: Optimizer steps of warm-up.
    """

    plan: GrowthPlan
    decays: bool = False
    warmup: int = 0

    def grows_after(self, step: int) -> bool:
        """Whether a stage is to come that opens blocks or raises the resolution."""
        # A stage that begins with the next step is still to come.
        stages = self.plan.stages[self.plan.stage_at(max(0, step - 1)) :]
        for before, after in zip(stages, stages[1:]):
            opened = set(after.blocks).difference(before.blocks)
            if opened or after.resolution != before.resolution:
                return True
        return False


@dataclass(frozen=True)
class Point:
    """One evaluation of a run.

    Attributes:
        step: Optimizer steps done.
        evaluation: Its losses.
    """

    step: int
    evaluation: Evaluation


def reason_to_stop(points: Sequence[Point], patience: int, outlook: Outlook) -> str | None:
    """Why a run should stop after its last evaluation, or None.

    * The loss has not fallen by more than its noise for `patience` evaluations. It is compared with the last
      evaluation that was lower by more than noise: small steps downwards add up.
    * Only evaluations of the stage that trains count, and of those not the first one, which shows the stage before.
      None of the warm-up counts.
    * While a stage is to come that opens blocks or raises the resolution, nothing stops.
    * While the learning rate still falls, a loss that stands still is no reason, since it falls with the rate. It must
      have been higher than the lowest by more than its noise, `patience` evaluations in a row.

    Args:
        points: All evaluations of the run, by step.
        patience: Evaluations to wait.
        outlook: What is to come.
    """
    if not points or outlook.grows_after(points[-1].step):
        return None
    plan = outlook.plan
    stage = plan.stage_at(max(0, points[-1].step - 1))
    reference = points[0].evaluation
    waited = 0
    risen = 0
    for before, point in zip(points, points[1:]):
        change = difference(point.evaluation, reference)
        inside = plan.stage_at(max(0, before.step - 1)) == stage and before.step >= outlook.warmup
        if change.is_lower:
            reference = point.evaluation
            waited = 0
            risen = 0
            continue
        waited += inside
        risen = risen + inside if change.is_higher else 0
    if outlook.decays:
        return f"the held-out loss rose for {risen} evaluations" if risen >= patience else None
    return f"the held-out loss did not fall for {waited} evaluations" if waited >= patience else None
