"""The clock of a learning rate that decays by what the stages cost, not by their optimizer steps."""

from __future__ import annotations

from typing import Literal

from autoprog_diffusion.growth import ConfigError, GrowthPlan
from autoprog_diffusion.growth.plan import Stage

from ..autoprog_one.config import ViTGrowthConfig


Sched = Literal["auto", "cosine", "cosine_by_cost", "constant"]

AUTO: Sched = "auto"
BY_COST: Sched = "cosine_by_cost"
BY_STEPS: Sched = "cosine"


def schedule_for(growing: ViTGrowthConfig, sched: Sched) -> Sched:
    """The schedule that `auto` stands for in pretraining: by cost where stages are known that differ in cost.

    Args:
        growing: Growth settings.
        sched: `--sched` of the run.

    Raises:
        ConfigError: As `check_clock`.
    """
    check_clock(sched, growing.search, "fixed")
    if sched != AUTO:
        return sched
    return BY_COST if growing.search == "fixed" and growing.num_stages > 1 else BY_STEPS


def check_clock(sched: Sched, search: str, known: str) -> None:
    """Refuse a decay by cost where a search decides the stages in the middle of the run.

    Args:
        sched: `--sched` of the run.
        search: Its `--search`.
        known: The value of `--search` with which the stages are known from the start.

    Raises:
        ConfigError: The message names both flags.
    """
    if sched == BY_COST and search != known:
        raise ConfigError(
            f"--sched {BY_COST} is not possible with --search {search}: what the run costs is not known before its "
            f"stages are decided. Use --search {known}, or --sched cosine."
        )


def share_of_cost(plan: GrowthPlan, step: int, *, frozen_blocks_run: bool) -> float:
    """Share of the cost of a run that lies before an optimizer step, from 0 to 1.

    The cost of a step is blocks times tokens: twice as many for the backward pass as for the forward pass. Attention
    scores, the patches' projection and the head are left out.

    Args:
        plan: Of the run; its stages have either all a stride or none.
        step: Counted from 0.
        frozen_blocks_run: Whether blocks that do not train run forward, as in fine-tuning, or not at all.

    Example:
        >>> plan = GrowthPlan(4, 100, (Stage(0, (0, 1), 16), Stage(50, (0, 1, 2, 3), 32)))
        >>> [round(share_of_cost(plan, step, frozen_blocks_run=False), 3) for step in (0, 50, 75, 100)]
        [0.0, 0.111, 0.556, 1.0]
    """
    before = 0.0
    total = 0.0
    done = plan.steps_between(0, step)
    whole = plan.steps_between(0, plan.num_training_steps)
    for stage, some, every in zip(plan.stages, done, whole, strict=True):
        cost = _step_cost(stage, plan.num_blocks, frozen_blocks_run)
        before += cost * some
        total += cost * every
    return before / total


def _step_cost(stage: Stage, num_blocks: int, frozen_blocks_run: bool) -> float:
    """Cost of an optimizer step, in forward passes of the whole model at one token a pixel and side 1."""
    side = stage.resolution / (stage.stride or 1)
    trained = len(stage.blocks) / num_blocks
    forward = 1.0 if frozen_blocks_run else trained
    return (forward + 2 * trained) * side**2
