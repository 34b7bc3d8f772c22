"""Rates of a resumed run: the optimizer's settings are those of its own command line, not those of the checkpoint."""

from __future__ import annotations

from typing import Any

import torch


# Of a group: what it holds, the rate, which follows the schedule, and the kernel that the run began with.
KEPT = ("params", "lr", "fused")


class Rates:
    """Settings of an optimizer and base rates of its schedule, taken before a checkpoint is loaded over them.

    Args:
        optimizer: As this start made it.
        scheduler: Its `LambdaLR`, or Accelerate's wrapper of one.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        self._optimizer = optimizer
        self._scheduler = getattr(scheduler, "scheduler", scheduler)
        self._base = list(self._scheduler.base_lrs)
        self._groups = []
        for group in optimizer.param_groups:
            settings = {name: value for name, value in group.items() if name not in KEPT}
            self._groups.append(settings)

    def put_back(self, processes: int = 1, before: int = 1) -> None:
        """Give every group its settings again, and the rate that this start's schedule has at the loaded step.

        Under equal settings it changes no bit.

        Args:
            processes: How many this start has: Accelerate advances a schedule once per process and step.
            before: How many wrote the checkpoint.
        """
        scheduler = self._scheduler
        scheduler.last_epoch = scheduler.last_epoch * processes // before
        scheduler.base_lrs = list(self._base)
        rates = [base * factor(scheduler.last_epoch) for base, factor in zip(self._base, scheduler.lr_lambdas)]
        for group, settings, rate in zip(self._optimizer.param_groups, self._groups, rates):
            group.update(settings, lr=rate)
        scheduler._last_lr = rates
