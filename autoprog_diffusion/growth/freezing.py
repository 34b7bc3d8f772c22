"""Plans that freeze: what they need of the host, and what a frozen block leaves behind in an optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from .errors import OrderError
from .plan import GrowthPlan


def check_freezing(plan: GrowthPlan, optimizers: Iterable[Any], accelerator: Any) -> None:
    """Refuse a plan that freezes where the optimizer's state of a frozen block cannot be let go.

    Raises:
        OrderError: No optimizer is known.
    """
    if plan.freezes and accelerator is None and not list(optimizers):
        raise OrderError(
            'a plan that freezes blocks (direction="freeze") lets go of their optimizer state: pass the optimizer, '
            "growth.prepare(model, num_training_steps=..., optimizer=optimizer)."
        )


def averageable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The same tensors as parameters that all require gradient, for the `step` of Diffusers' `EMAModel`.

    It copies the raw weights of a parameter that does not require gradient over their average, so that what has just
    frozen would lose its average.
    """
    return [nn.Parameter(parameter.detach()) for parameter in parameters]


def release_state(plan: GrowthPlan, optimizers: Iterable[Any]) -> None:
    """Under a plan that freezes, drop the optimizers' state of every parameter that does not train now."""
    for optimizer in optimizers if plan.freezes else ():
        inner = getattr(optimizer, "optimizer", optimizer)
        for parameter in [parameter for parameter in inner.state if not parameter.requires_grad]:
            del inner.state[parameter]
