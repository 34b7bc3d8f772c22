"""What tests of the trainer share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from autoprog_diffusion.training.diffusion import DiffusionTrainer as Trainer


NewTrainer = Callable[..., Trainer]
STEPS = 5
# Crosses an epoch: 24 images are 6 batches of 4, and 5 steps of 2 are 10.
FLAGS = (
    "--max_train_steps", STEPS, "--train_batch_size", 4, "--gradient_accumulation_steps", 2,
    "--lr_scheduler", "cosine", "--lr_warmup_steps", 2, "--learning_rate", 1e-3, "--max_grad_norm", 0.5,
    "--random_flip", "--no-cache_latents",
)  # fmt: skip


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.bare.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)
