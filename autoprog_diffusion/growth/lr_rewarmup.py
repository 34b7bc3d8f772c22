"""Learning-rate re-warm-up of what a stage has just opened, around the steps of the user's own optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from .errors import OrderError
from .state import StageRecord
from .units import Layout


class Rewarm:
    """Scales the learning rate of newly opened blocks from 1/n to 1 over n optimizer steps.

    The optimizer must hold a block's parameters in groups of their own (`GrowthScheduler.parameter_groups`); schedules
    and checkpoints see the unscaled rates, since every group is scaled before a step and restored after it.

    Args:
        steps: n; 0 leaves the rates alone.
        layout: The model's units.
        parameters: Of the model, by name.
    """

    def __init__(self, steps: int, layout: Layout, parameters: dict[str, nn.Parameter]) -> None:
        self._steps, self._inputs, self._first = steps, layout.inputs.name, layout.blocks[0].name
        self._units = {id(parameters[name]): unit.name for unit in layout.units for name in unit.parameters}
        self._opened: dict[str, int] = {}
        self._groups: list[tuple[dict[str, Any], str]] = []
        self._rates: list[Any] = []
        self._step = 0
        self._handles: list[Any] = []

    def watch(self, optimizers: Iterable[Any]) -> None:
        """Hook the optimizers.

        Raises:
            OrderError: There is none, or a group holds parameters of two units.
        """
        if not self._steps:
            return
        found = [getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers]
        every = [group for optimizer in found for group in optimizer.param_groups]
        groups = [(group, {self._units.get(id(parameter), "") for parameter in group["params"]}) for group in every]
        mixed = [sorted(names) for _, names in groups if len(names) > 1]
        if mixed or not groups:
            raise OrderError(
                f"rewarm_steps={self._steps} needs an optimizer that holds every block in a group of its own"
                f"{f', but one group holds {mixed[0][:3]}' if mixed else ''}: build it from growth.parameter_groups()."
            )
        self._groups = [(group, next(iter(names))) for group, names in groups]
        for optimizer in found:
            self._handles.append(optimizer.register_step_pre_hook(self._scale))
            self._handles.append(optimizer.register_step_post_hook(self._restore))

    def follow(self, history: Sequence[StageRecord], step: int) -> None:
        """Learn when every unit was opened, and how many optimizer steps are done."""
        self._step, self._opened = step, {}
        for record in history:
            inputs = [self._inputs] if self._first in record.blocks else []
            for name in (*record.blocks, *inputs):
                self._opened.setdefault(name, record.step)
        # What trains from the first step on has the schedule's own warm-up.
        self._opened = {name: opened for name, opened in self._opened.items() if opened > 0}

    def stop(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def factor(self, unit: str) -> float:
        """What the next step's learning rate of a unit is multiplied by, in (0, 1]."""
        opened = self._opened.get(unit)
        return 1.0 if opened is None else min(1.0, (self._step - opened + 1) / self._steps)

    def _scale(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._rates = [group["lr"] for group, _ in self._groups]
        for group, unit in self._groups:
            if (factor := self.factor(unit)) < 1.0:
                group["lr"] = group["lr"] * factor

    def _restore(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        for (group, _), rate in zip(self._groups, self._rates):
            group["lr"] = rate
