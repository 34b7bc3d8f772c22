"""Learning-rate re-warm-up of newly opened blocks, around the steps of the user's own optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from .bare import bare
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
        # An optimizer, the number of one of its groups, and its unit: loading a state replaces the groups themselves.
        self._places: list[tuple[Any, int, str]] = []
        self._rates: list[Any] = []
        self._step = 0
        self._hooks = ExitStack()

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
        unit_names = {}
        for unit in self._layout.units:
            for name in unit.parameters:
                unit_names[parameters[name]] = unit.name
        self._places.clear()
        detail = ""
        for optimizer in optimizers:
            inner = bare(optimizer)
            self._hooks.enter_context(inner.register_step_pre_hook(self._scale))
            self._hooks.enter_context(inner.register_step_post_hook(self._restore))
            for index, group in enumerate(inner.param_groups):
                # Parameters outside of the model, such as the stage embedding, belong to no unit.
                names = sorted({unit_names.get(parameter, "") for parameter in group["params"]})
                self._places += [(inner, index, name) for name in names]
                if len(names) > 1:
                    detail = detail or f", but one group holds {names[:3]}"
        if detail or not self._places:
            self.stop()
            raise OrderError(
                f"rewarm_steps={self._steps} needs an optimizer that holds every block in a group of its own{detail}: "
                "build it from growth.parameter_groups()."
            )

    def follow(self, history: Sequence[StageRecord], step: int) -> None:
        """Note when every unit was opened, and that `step` optimizer steps are done."""
        self._step = step
        self._opened.clear()
        before: set[str] = set()
        for record in history:
            for name in set(record.blocks) - before:
                self._opened[name] = record.step
            before = set(record.blocks)
        if not self._layout.inputs_always:
            # The inputs train together with the first block.
            first_block, *_ = self._layout.blocks
            self._opened[self._layout.inputs.name] = self._opened.get(first_block.name, 0)

    def stop(self) -> None:
        """Take the hooks off."""
        self._hooks.close()

    def factor(self, unit: str) -> float:
        """Factor of a unit's learning rate in the next step, in (0, 1]."""
        start = self._opened.get(unit, 0)
        if start == 0:
            # Units that train from the first step on have the schedule's own warm-up.
            return 1.0
        done = self._step - start
        return min(1.0, (done + 1) / self._steps)

    def _scale(self, *ignored: Any) -> None:
        """Hook before an optimizer's step: remember every group's rate, and lower that of newly opened units."""
        self._rates = [optimizer.param_groups[index]["lr"] for optimizer, index, _ in self._places]
        for optimizer, index, unit in self._places:
            group = optimizer.param_groups[index]
            factor = self.factor(unit)
            # A rate may be a tensor: leave it untouched where nothing changes.
            if factor < 1.0:
                group["lr"] = group["lr"] * factor

    def _restore(self, *ignored: Any) -> None:
        """Hook after an optimizer's step: put the rates back."""
        for (optimizer, index, _), rate in zip(self._places, self._rates):
            optimizer.param_groups[index]["lr"] = rate
