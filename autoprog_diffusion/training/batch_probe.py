"""`--probe_batch`: the gradient noise scale of a run before it trains, and what it says about its batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.search.batch_advice import BatchAdvice
from autoprog_diffusion.search.noise_estimate import FEWEST_CALLS
from autoprog_diffusion.search.noise_scale import CALLS, gradient_noise


if TYPE_CHECKING:
    from .diffusion import DiffusionTrainer


def batch_advice(trainer: DiffusionTrainer, accumulation: int) -> BatchAdvice:
    """Measure on the next batches, which train afterwards all the same, and leave no trace in the run.

    Args:
        trainer: Ready to train.
        accumulation: Batches of an optimizer step on one process.

    Raises:
        ConfigError: An epoch has too few batches.
        SearchError: The run scales gradients or shards parameters, or a gradient is not finite.
    """
    accelerator = trainer.accelerator
    # Of one epoch: the noise among images that come again is smaller than that among others.
    calls = min(CALLS, trainer.epoch_batches)
    if calls * accelerator.num_processes < FEWEST_CALLS:
        raise ConfigError(
            f"--probe_batch compares the gradients of at least {FEWEST_CALLS} batches of an epoch, and this one has "
            f"{calls * accelerator.num_processes}: use more images, a smaller --train_batch_size, or not this flag."
        )
    with torch.random.fork_rng():
        trainer.enter_stage()
        noise = gradient_noise(
            trainer.bare,
            trainer.loss,
            trainer.batches(),
            calls=calls,
            growth=trainer.growth,
            accelerator=accelerator,
        )
    batch = noise.batch * accumulation * accelerator.num_processes
    return noise.advice(batch, trainer.max_steps - trainer.step)
