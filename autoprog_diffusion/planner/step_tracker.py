"""A tracker of one device that keeps running totals, and counts FLOPs, operations and the bytes they move."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from autoprog_diffusion.growth.tape import Call, Tape
from autoprog_diffusion.growth.tape_recorder import FORMULAS

from .tracker import DEVICE, KINDS, Held, Kind, MemoryTracker, parts
from .work import Work


CONVOLUTIONS = ("convolution", "convolution_backward", "_convolution")


class StepTracker(MemoryTracker):
    """A tracker that keeps running totals of one device, and counts work.

    Args:
        device: Type of the device.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device
        self.held: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self.total = 0
        self.high = 0
        self.highest: dict[Kind, int] = dict(self.held)  # what was held then
        self.work = Work()
        self.tape: Tape | None = None  # what follows the forward pass

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        # Where a tensor lies is no operation of the device, though fake tensors ask for it as if it were one.
        counts = func is not DEVICE and isinstance(func, torch._ops.OpOverload)
        if counts and result is not NotImplemented:
            self._count(
                func,
                args,
                kwargs or {},
                result,
            )
        return result

    def label(self, kind: Kind, tensors: Any) -> None:
        for tensor in tensors:
            for part in parts(tensor):
                held = self._record(part, kind)
                if held.kind != kind and held.device == self._device:
                    self.held[held.kind] -= held.bytes
                    self.held[kind] += held.bytes
                held.kind = kind

    def storage(self, tensor: Tensor) -> int:
        """A number for the storage of a tensor that no other one has had; those of unknown ones are negative."""
        key = tensor.untyped_storage()._cdata
        held = self._alive.get(key)
        return -key if held is None else held.born

    def reset_high(self) -> None:
        """Look for the peak from now on."""
        self.high = self.total
        self.highest = dict(self.held)

    def _record(self, tensor: Tensor, kind: Kind) -> Held:
        known = tensor.untyped_storage()._cdata in self._alive
        held = super()._record(tensor, kind)
        if not known and held.device == self._device:
            self._change(held, held.bytes)
            if self.total > self.high:
                self.reset_high()
        return held

    def _die(self, key: int) -> None:
        held = self._alive[key]
        super()._die(key)
        if held.device == self._device:
            self._change(held, -held.bytes)

    def _change(self, held: Held, bytes: int) -> None:
        self.held[held.kind] += bytes
        self.total += bytes

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Add an operation to the work; views cost nothing."""
        if func.is_view:
            return
        packet = func._overloadpacket
        formula = FORMULAS.get(packet)
        flops = 0 if formula is None else formula(*args, **kwargs, out_val=result)
        name = packet.__name__
        if self.tape is not None:
            self.tape.note(
                Call(
                    name=name,
                    args=args,
                    kwargs=kwargs,
                    result=result,
                    flops=flops,
                    key=self.storage,
                )
            )
        self.work.calls += 1
        if formula is None:
            tensors = [value for value in tree_leaves((args, kwargs, result)) if isinstance(value, Tensor)]
            self.work.moved += sum(value.numel() * value.element_size() for value in tensors)
            return
        if name in CONVOLUTIONS:
            self.work.convolutions += flops
        elif "attention" in name:
            self.work.attend(args[0].shape[-1], flops)
        else:
            self.work.products += flops
