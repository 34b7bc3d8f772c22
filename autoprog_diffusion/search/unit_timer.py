"""Where a step goes: a clock (seconds, or FLOPs) read at the boundaries of every unit, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.frozen_front import called_modules
from autoprog_diffusion.growth.units import Layout

from .recorded_calls import RecordedCall, map_tensors


INPUTS, OUTPUTS = "inputs", "outputs"


def run_segments(
    model: nn.Module, layout: Layout, call: RecordedCall, clock: Callable[[], float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Forward and backward cost of every unit in one step.

    What lies between two units (skips, concatenations) counts with the unit that runs next. With gradient
    checkpointing the recomputation counts as backward.

    Args:
        model: The bare model, with the parameters that should train set so.
        layout: Its units.
        call: Inputs and output gradient.
        clock: Read at every boundary; must have waited for the device.

    Returns:
        Unit name -> forward cost, and unit name -> backward cost, in the clock's unit.
    """
    meter = _Meter(clock)
    handles: list[Any] = []
    try:
        for unit in layout.blocks:
            for module in called_modules(model, unit.modules):
                handles.append(module.register_forward_pre_hook(meter.entering(), with_kwargs=True))
                handles.append(module.register_forward_hook(meter.leaving(unit.name)))
        meter.start()
        output = call.run(model)
        meter.end_forward()
        output.backward(call.gradient)
        meter.end_backward()
    finally:
        for handle in handles:
            handle.remove()
    for parameter in model.parameters():
        parameter.grad = None
    return meter.forward, meter.backward


class _Meter:
    """Adds the time between two readings of the clock to the unit that it belongs to."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.forward: dict[str, float] = {}
        self.backward: dict[str, float] = {}
        self._last, self._in_forward, self._entered, self._owner = 0.0, True, False, OUTPUTS

    def start(self) -> None:
        self._last = self._clock()

    def end_forward(self) -> None:
        self._charge(self.forward, OUTPUTS)
        self._in_forward = False

    def end_backward(self) -> None:
        self._charge(self.backward, self._owner)

    def entering(self) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._in_forward and not self._entered:
                # The first unit begins: all before it were embedders, and so is what follows its input's gradient.
                self._entered = True
                self._charge(self.forward, INPUTS)
                map_tensors((args, kwargs), self._on_gradient(INPUTS))

        return hook

    def leaving(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._in_forward:
                self._charge(self.forward, name)
                map_tensors(output, self._on_gradient(name))

        return hook

    def _on_gradient(self, name: str) -> Callable[[Tensor], Tensor]:
        def watch(tensor: Tensor) -> Tensor:
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: self._switch(name))
            return tensor

        return watch

    def _switch(self, name: str) -> None:
        """The gradient of `name`'s output is complete: what ran until now belongs to the unit before."""
        self._charge(self.backward, self._owner)
        self._owner = name

    def _charge(self, account: dict[str, float], name: str) -> None:
        now = self._clock()
        account[name] = account.get(name, 0.0) + now - self._last
        self._last = now


def device_clock(device: torch.device, read: Callable[[], float]) -> Callable[[], float]:
    """A clock that waits for `device` before it is read."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return read()

    return clock
