"""One optimizer step of the recipes' loop: forward and backward passes, clipping, and the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn


if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class StepDone:
    """What an optimizer step leaves to look at.

    Attributes:
        loss: Mean loss of its passes on this process, a scalar.
        norm: Norm of the gradient before it was clipped, a scalar; None without clipping.
    """

    loss: Tensor
    norm: Tensor | None


def accumulated_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    passes: int,
    loss: Callable[[], Tensor],
    clip: Callable[[], Tensor | None],
) -> StepDone:
    """Accumulate gradients over some passes, clip them and step.

    Args:
        accelerator: The run's accelerator.
        model: The prepared model.
        optimizer: The prepared optimizer.
        passes: Forward passes of this step.
        loss: The loss of the next batch, a scalar.
        clip: Clips the gradient and returns the norm that it had.
    """
    losses = []
    norm = None
    # Accelerate counts passes, and divides every loss by their number.
    accelerator.gradient_accumulation_steps = passes
    accelerator.step = 0
    for _ in range(passes):
        with accelerator.accumulate(model):
            value = loss()
            accelerator.backward(value)
            losses.append(value.detach())
            if accelerator.sync_gradients:
                norm = clip()
            optimizer.step()
            optimizer.zero_grad()
    return StepDone(loss=torch.stack(losses).mean(), norm=norm)
