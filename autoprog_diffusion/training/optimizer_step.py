"""One optimizer step of the recipes' loop: forward and backward passes, clipping, and the step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.backward_step import BackwardStep


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


def clip_gradient(
    accelerator: Accelerator, parameters: Iterable[nn.Parameter], max_norm: float | None, backward_step: BackwardStep
) -> Tensor | None:
    """Clip the gradient, and return the norm that all of it had, a scalar; None without clipping.

    Args:
        accelerator: The run's accelerator.
        parameters: All that train.
        max_norm: The largest norm, or None.
        backward_step: Where it moves blocks, it has clipped each of them alone.
    """
    if backward_step.active:
        return backward_step.clip()
    return None if max_norm is None else accelerator.clip_grad_norm_(parameters, max_norm)
