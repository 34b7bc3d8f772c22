"""The plan of a file, for a run of another length, and the images that a plan asks for."""

from __future__ import annotations

from pathlib import Path

from autoprog_diffusion.growth import GrowthScheduler
from autoprog_diffusion.growth.errors import PlanError
from autoprog_diffusion.growth.plan import GrowthPlan
from autoprog_diffusion.growth.resize import stage_size

from .checkpoints import checkpoint_step


def plan_for(plan: GrowthPlan | None, steps: int, checkpoint: Path | None) -> GrowthPlan | None:
    """The plan of `--growth_plan`; a run that is resumed with another number of steps goes on with its stages.

    Args:
        plan: As the file has it, if there is one.
        steps: Optimizer steps of the run.
        checkpoint: That is resumed.

    Raises:
        PlanError: A run that begins has another number of steps, or one that is resumed has done more.
    """
    if plan is None or plan.num_training_steps == steps:
        return plan
    if checkpoint is None:
        raise PlanError(
            f"--growth_plan is for {plan.num_training_steps} steps, the run has {steps}: use --max_train_steps "
            f"{plan.num_training_steps}, or change num_training_steps, and the start of every stage, in the file."
        )
    return plan.extended(steps, checkpoint_step(checkpoint))


def check_sizes(growth: GrowthScheduler, side: int) -> None:
    """Refuse a later stage's resolution now, before the first one trains.

    Args:
        growth: Prepared.
        side: Of the training images, in pixels.

    Raises:
        ConfigError: The images of a stage cannot have this size.
    """
    planned = [stage.resolution for stage in growth.plan.stages]
    for resolution in (*planned, *(growth.config.resolutions or ())):
        stage_size((side, side), resolution, growth.config.resolution_multiple)
