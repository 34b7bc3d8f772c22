"""The average of a recipe's weights: which one its flags ask for, and making it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from autoprog_diffusion.evaluation.stopping import DECAYING
from autoprog_diffusion.growth import ConfigError, GrowthScheduler, StateError
from autoprog_diffusion.growth.power_average import DEFAULT_WIDTH, PowerAverage
from autoprog_diffusion.growth.power_snapshots import FILE

from .flag_checks import replaces_decay
from .optimizers import optimizer_name


if TYPE_CHECKING:
    from accelerate import Accelerator

    from .recipe_arguments import TrainArguments


def averages(train: TrainArguments, accelerator: Accelerator, steps: int, checkpoint: Path | None = None) -> bool:
    """Whether a run tracks power-function averages; what is left out or adds little is said.

    With `--average auto` it does where they replace a decay of the learning rate: the rate is constant after warm-up,
    `--use_ema` does not ask for another average, and the run is long enough for the widths. A resumed run then goes on
    as it began, with or without.

    Args:
        train: Flags of the run.
        accelerator: Of the run.
        steps: Optimizer steps of the run.
        checkpoint: That the run resumes; None where it begins.

    Raises:
        ConfigError: `--average on` beside `--use_ema`.
    """
    if train.average == "off":
        return False
    if train.average == "on":
        if train.use_ema:
            raise ConfigError(
                "--average on and --use_ema are two averages of the weights, of which one can be saved: leave one of "
                "them out (--no-use_ema)."
            )
        if train.lr_scheduler in DECAYING:
            accelerator.print(
                f"--average on adds little to --lr_scheduler {train.lr_scheduler}, which decays: use "
                "constant_with_warmup, whose decay the average replaces."
            )
        return True
    if checkpoint is not None:
        return (checkpoint / FILE).exists()
    wanted = replaces_decay(train.lr_scheduler, use_ema=train.use_ema)
    if wanted and min(train.average_widths) == DEFAULT_WIDTH and DEFAULT_WIDTH * steps < 1:
        accelerator.print(f"The weights are not averaged: a run of {steps} steps is too short for it.")
        return False
    return wanted


def make_average(
    model: nn.Module,
    growth: GrowthScheduler,
    accelerator: Accelerator,
    train: TrainArguments,
) -> PowerAverage:
    """The average of a run, after `growth.prepare` and before a checkpoint is loaded.

    It takes 4 bytes a parameter. Where a flag saves memory on the device, it is kept in CPU memory.

    Raises:
        ConfigError: Its widths do not fit the run.
        OrderError: DeepSpeed or FSDP version 1 spreads the model over processes.
    """
    reason = "--offload_ema" if train.offload_ema else saves_memory(train, growth)
    on_cpu = reason is not None and accelerator.device.type != "cpu"
    if on_cpu:
        accelerator.print(
            f"The average of the weights is kept in CPU memory, as {reason} saves the device's; --average off does "
            "without it."
        )
    return PowerAverage(
        model,
        growth=growth,
        accelerator=accelerator,
        widths=train.average_widths,
        device="cpu" if on_cpu else None,
        warn_of_decay=False,  # said before the run begins
    )


def saves_memory(train: TrainArguments, growth: GrowthScheduler) -> str | None:
    """The flag by which a run saves memory of weights, gradients or optimizer state; None without one."""
    if growth.config.direction == "window":
        return "--direction window"
    if train.trained_dtype != "float32":
        return f"--trained_dtype {train.trained_dtype}"
    for flag in ("step_in_backward", "offload_optimizer"):
        if getattr(train, flag):
            return f"--{flag}"
    return None if optimizer_name(train) == "adamw" else f"--optimizer {optimizer_name(train)}"


def check_checkpoint(average: PowerAverage | None, checkpoint: Path) -> None:
    """Refuse a checkpoint with averages for a run without, and the other way round.

    Raises:
        StateError: For these reasons.
    """
    there = (checkpoint / FILE).exists()
    if average is not None and not there:
        raise StateError(
            f"{checkpoint} holds no average of the weights ({FILE}), since its run tracked none: resume it with "
            "--average off."
        )
    if average is None and there:
        raise StateError(
            f"{checkpoint} holds an average of the weights ({FILE}), which this run would drop: resume it with "
            "--average on, and without --use_ema."
        )
