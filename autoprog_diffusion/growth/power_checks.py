"""Loops and settings that a power-function average cannot serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .backends import accelerate as host
from .backends.fsdp2 import is_sharded
from .errors import ConfigError, OrderError


if TYPE_CHECKING:
    from .scheduler import GrowthScheduler

DTYPES = (torch.float32, torch.float64)


def check_settings(growth: GrowthScheduler | None, dtype: torch.dtype, *, freezes: bool) -> None:
    """Refuse settings that do not go together.

    Args:
        growth: The scheduler of the model, if there is one.
        dtype: Type of the averages.
        freezes: Whether blocks are frozen at their averages.

    Raises:
        ConfigError: Averages in half precision, a stage embedding with another average, or blocks that cannot be
            frozen at their averages.
    """
    if dtype not in DTYPES:
        raise ConfigError(
            f"averages in {dtype} are refused: a step of a wide average changes it by less than {dtype} can tell, and "
            "it would stand still. Use dtype=torch.float32, and device='cpu' where memory is short."
        )
    if freezes and growth is None:
        raise ConfigError("freeze_at_average=True freezes what growth freezes: pass growth=, or leave it out.")
    if growth is None:
        return
    if growth.config.ema_decay is not None:
        raise ConfigError(
            f"the stage embedding has an average of its own, ema_decay={growth.config.ema_decay}: leave it out of "
            "GrowthConfig, the power-function average holds that of the model and of the stage embedding."
        )
    if freezes and not growth.plan.freezes:
        raise ConfigError(
            "freeze_at_average=True has nothing to do in a plan that freezes nothing, such as that of "
            f'direction={growth.config.direction!r} here: use direction="freeze" or "window", or leave it out.'
        )


def check_host(model: nn.Module, accelerator: Any) -> None:
    """Refuse parameters that are, or will be, spread over processes in a way that averages do not follow.

    Raises:
        OrderError: They are.
    """
    kind = host.backend(accelerator)
    if kind in host.SUPPORTED:
        return
    instead = "use one process, DistributedDataParallel, or FSDP with fsdp_version: 2."
    if kind != "FSDP":
        raise OrderError(
            f"distributed_type={kind} spreads the parameters over the processes, which a power-function average does "
            f"not follow: {instead}"
        )
    version = getattr(getattr(accelerator.state, "fsdp_plugin", None), "fsdp_version", 1)
    if version != 2:
        raise OrderError(
            f"fsdp_version={version} flattens parameters into one, which a power-function average does not follow: "
            f"{instead}"
        )
    if not is_sharded(model):
        raise OrderError(
            "FSDP has not cut the model's parameters yet, and would leave the average without them: build it after "
            "accelerator.prepare, and after growth.prepare."
        )
