"""`ViTScript`: what the scripts of vit/ that train share."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from autoprog_diffusion.training.build import make_accelerator
from autoprog_diffusion.training.run import Script

from ..models import save_model
from .arguments import SharedArguments
from .trainer import ViTTrainer


if TYPE_CHECKING:
    from accelerate import Accelerator

AnyArguments = TypeVar("AnyArguments", bound=SharedArguments)


class ViTScript(Script[AnyArguments, ViTTrainer]):
    """One way of training a vision transformer."""

    def make_accelerator(self, args: AnyArguments) -> Accelerator:
        train = args.train
        return make_accelerator(
            args.output,
            accumulation=train.grad_accum_steps,
            mixed_precision=train.mixed_precision,
            seed=train.seed,
        )

    def save(self, trainer: ViTTrainer, output: Path) -> None:
        """Write the model, with averaged weights if they are asked for, and the names of its classes."""
        with trainer.averaged() if trainer.args.train.model_ema else nullcontext():
            self.save_model(trainer.bare, output, trainer.data.classes)

    def save_model(self, model: nn.Module, output: Path, classes: tuple[str, ...]) -> None:
        """Write a checkpoint of the model's own library."""
        save_model(model, output, labels=classes)
