"""Learning-rate re-warm-up of newly opened blocks, around the steps of the user's own optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from .errors import OrderError
from .state import StageRecord
from .units import Layout


class LRRewarmup:
    """Scales the learning rate of newly opened blocks from 1/n to 1 over n optimizer steps.

    The optimizer must hold a block's parameters in groups of their own (`GrowthScheduler.parameter_groups`). Schedules
    and checkpoints see the unscaled rates, since every group is scaled before a step and restored after it.

    Args:
        steps: n; 0 leaves the rates alone.
        layout: The model's units.
    """

    def __init__(self, steps: int, layout: Layout) -> None:
        self._steps = steps
        self._layout = layout
        self._opened: dict[str, int] = {}
        self._groups: list[tuple[dict[str, Any], str]] = []
        self._rates: list[Any] = []
        self._step = 0
        self._handles: list[Any] = []

    def watch(self, optimizers: Iterable[Any], parameters: Mapping[str, nn.Parameter]) -> None:
        """Hook the optimizers.

        Args:
            optimizers: Those of the run, bare or wrapped by Accelerate.
            parameters: Of the model, by name.

        Raises:
            OrderError: There is none, or a group holds parameters of two units.
        """
        if not self._steps:
            return
        units = {id(parameters[name]): unit.name for unit in self._layout.units for name in unit.parameters}
        bare = [getattr(optimizer, "optimizer", optimizer) for optimizer in optimizers]
        self._groups = []
        mixed: list[str] = []
        for optimizer in bare:
            for group in optimizer.param_groups:
                names = sorted({units.get(id(parameter), "") for parameter in group["params"]})
                self._groups.append((group, names[0] if names else ""))
                if len(names) > 1 and not mixed:
                    mixed = names
        if mixed or not self._groups:
            detail = f", but one group holds {mixed[:3]}" if mixed else ""
            raise OrderError(
                f"rewarm_steps={self._steps} needs an optimizer that holds every block in a group of its own{detail}: "
                "build it from growth.parameter_groups()."
            )
        for optimizer in bare:
            self._handles.append(optimizer.register_step_pre_hook(self._scale))
            self._handles.append(optimizer.register_step_post_hook(self._restore))

    def follow(self, history: Sequence[StageRecord], step: int) -> None:
        """Note when every unit was opened, and that `step` optimizer steps are done."""
        self._step = step
        opened: dict[str, int] = {}
        for record in history:
            for name in record.blocks:
                opened.setdefault(name, record.step)
        # The inputs train together with the first block.
        first = self._layout.blocks[0].name
        if first in opened:
            opened[self._layout.inputs.name] = opened[first]
        # Units that train from the first step on have the schedule's own warm-up.
        self._opened = {name: start for name, start in opened.items() if start > 0}

    def stop(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def factor(self, unit: str) -> float:
        """Factor of a unit's learning rate in the next step, in (0, 1]."""
        if unit not in self._opened:
            return 1.0
        done = self._step - self._opened[unit]
        return min(1.0, (done + 1) / self._steps)

    def _scale(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._rates = [group["lr"] for group, _ in self._groups]
        for group, unit in self._groups:
            factor = self.factor(unit)
            # A rate may be a tensor: leave it untouched where nothing changes.
            if factor < 1.0:
                group["lr"] = group["lr"] * factor

    def _restore(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        for (group, _), rate in zip(self._groups, self._rates):
            group["lr"] = rate
