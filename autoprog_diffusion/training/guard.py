"""What ends a training run: a value that is not finite, a checkpoint that cannot be written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from autoprog_diffusion.growth.errors import GrowthError

from .checkpoints import find_checkpoint, save_checkpoint


if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainingError(GrowthError):
    """Training cannot go on."""


def check_finite(name: str, value: float, where: str, lr_flag: str, root: Path) -> None:
    """Stop where a loss or a gradient is not a number.

    Args:
        name: What the value is.
        value: Of this step.
        where: Step and stage, for the message.
        lr_flag: Flag of the learning rate.
        root: Folder of the run's checkpoints.

    Raises:
        TrainingError: The message says what to change, and names the newest complete checkpoint.
    """
    if not math.isfinite(value):
        raise TrainingError(
            f"the {name} is {value} at {where}: lower {lr_flag} or use --mixed_precision bf16. The newest complete "
            f"checkpoint is {find_checkpoint(root, 'latest')}."
        )


def write_checkpoint(accelerator: Accelerator, root: Path, step: int, limit: int | None) -> None:
    """`save_checkpoint`, with an error that says what is left.

    Raises:
        TrainingError: It cannot be written.
    """
    try:
        save_checkpoint(accelerator, root, step, limit)
    except Exception as error:  # torch, safetensors and the file system each have their own
        raise TrainingError(
            f"checkpoint-{step} cannot be written: {error}. The newest complete checkpoint is "
            f"{find_checkpoint(root, 'latest')}: free space and go on with --resume_from_checkpoint latest."
        ) from error
