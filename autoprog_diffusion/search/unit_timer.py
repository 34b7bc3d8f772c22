"""The cost of every unit in a step: a clock (seconds, or FLOPs) is read at the unit's boundaries."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn

from autoprog_diffusion.growth.frozen_front import called_modules
from autoprog_diffusion.growth.units import Layout

from .recorded_calls import RecordedCall, take_gradients, tensors_in


Clock = Callable[[], float]
Costs = dict[str, float]  # name of a unit -> seconds, or FLOPs


def time_units(model: nn.Module, layout: Layout, call: RecordedCall, clock: Clock) -> tuple[Costs, Costs]:
    """Run one forward and backward pass and charge its cost to the units.

    Skips and concatenations between two units count with the unit that runs next. With gradient checkpointing the
    recomputation counts as backward.

    Args:
        model: The bare model; the parameters that should train require gradient.
        layout: Its units.
        call: Inputs and output gradient.
        clock: Is read at every boundary; must have waited for the device.

    Returns:
        Cost of every unit in the forward and in the backward pass, by its name, in the clock's unit of measure.
    """
    timer = _UnitTimer(layout, clock)
    with ExitStack() as hooks:
        for unit in layout.blocks:
            for module in called_modules(model, unit.modules):
                hooks.enter_context(module.register_forward_pre_hook(timer.enter, with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(partial(timer.leave, unit.name)))
        timer.begin()
        output = call.run(model)
        timer.end_forward()
        output.backward(call.gradient)
        timer.end_backward()
    take_gradients(model)
    return timer.forward, timer.backward


class _UnitTimer:
    """Charges the time between two readings of the clock to the unit that it belongs to.

    Args:
        layout: The units.
        clock: The clock.
    """

    def __init__(self, layout: Layout, clock: Clock) -> None:
        names = [unit.name for unit in layout.units]
        self.forward = dict.fromkeys(names, 0.0)
        self.backward = dict.fromkeys(names, 0.0)
        self._inputs = layout.inputs.name
        self._outputs = layout.outputs.name
        self._clock = clock
        self._last = 0.0
        self._in_forward = False  # gradient checkpointing runs the hooks again in the backward pass
        self._entered = False
        self._owner = self._outputs  # of the backward pass that runs now

    def begin(self) -> None:
        """The forward pass begins."""
        self._last = self._clock()
        self._in_forward = True

    def end_forward(self) -> None:
        """The forward pass has ended: what followed the last block belongs to the outputs."""
        self._in_forward = False
        self._charge(self.forward, self._outputs)

    def end_backward(self) -> None:
        """The backward pass has ended: what preceded the first gradient of a block belongs to the outputs."""
        self._charge(self.backward, self._owner)

    def enter(self, _: nn.Module, *inputs: Any) -> None:
        """Forward pre-hook of every block's modules.

        The first block starts here. Everything before it, and the backward pass after its input gradient, belongs to
        the embedders.
        """
        if self._in_forward and not self._entered:
            self._entered = True
            self._charge(self.forward, self._inputs)
            self._watch_gradients(inputs, self._inputs)

    def leave(self, name: str, _: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of the modules of the block called `name`."""
        if self._in_forward:
            self._charge(self.forward, name)
            self._watch_gradients(output, name)

    def _watch_gradients(self, value: Any, name: str) -> None:
        """Let `name` own the backward pass from the moment when the gradient of a tensor in `value` is complete."""
        for tensor in tensors_in(value):
            if tensor.requires_grad:
                tensor.register_hook(partial(self._switch_owner, name))

    def _switch_owner(self, name: str, gradient: Any) -> None:
        """The gradient of `name`'s output is complete: the time until now belongs to the unit that runs after it."""
        self._charge(self.backward, self._owner)
        self._owner = name

    def _charge(self, account: Costs, name: str) -> None:
        """Add the time since the last reading of the clock to an account."""
        now = self._clock()
        account[name] += now - self._last
        self._last = now


def wall_clock(device: torch.device) -> Clock:
    """A clock in seconds that waits for `device` before it is read."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def median_seconds(action: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Wall time of `action` on `device`: the median of some runs, after one that is not counted."""
    clock = wall_clock(device)
    seconds = []
    for _ in range(repeats + 1):
        start = clock()
        action()
        seconds.append(clock() - start)
    return median(seconds[1:])
