"""Follows every storage of a device over a training step from its birth to its death, and what it is for.

`MemoryTracker` sees the result of every operation, of the forward and of the backward pass, on real and on fake
tensors alike. What it cannot see are the workspaces that a kernel takes and gives back while it runs.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoprog_diffusion.growth.memory import plain_tensors


# copies: of weights in the type of autocast, and of quantised weights at full width. other: of the backward pass and
# the optimizer while they compute.
Kind = Literal["weights", "copies", "gradients", "optimizer", "activations", "other"]
KINDS: tuple[Kind, ...] = ("weights", "copies", "gradients", "optimizer", "activations", "other")
PLAIN = (Tensor, nn.Parameter, FakeTensor)
DEVICE = torch.ops.prim.device.default
COPYING = (torch.ops.aten._to_copy.default,)


@dataclass
class Held:
    """One storage.

    Attributes:
        device: Type of its device.
        bytes: Its size.
        born: When, on the tracker's clock.
        died: When; infinity while it lives.
        kind: What it is for.
    """

    device: str
    bytes: int
    born: int
    kind: Kind
    died: float = math.inf


@dataclass(frozen=True)
class Peak:
    """The most that a device held, and what it was: bytes by kind, which add up to the total."""

    total: int
    split: dict[Kind, int]


class MemoryTracker(TorchDispatchMode):
    """Records every storage that an operation makes inside a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = 0
        self._begin = 0
        self._kind: Kind = "other"
        self._alive: dict[int, Held] = {}
        self._dead: list[Held] = []
        self._references: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # asked all the time, and slow the long way
        # A tensor that is made of others (quantised weights) runs its own code first: then its parts come here.
        if any(cls not in PLAIN for cls in types):
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        kind = self._kind
        if func in COPYING and self._is_weight(args[0]):
            kind = "copies"
        for tensor in tree_leaves(result):
            if type(tensor) in PLAIN:
                self._record(tensor, kind)
        return result

    @contextmanager
    def during(self, kind: Kind) -> Iterator[None]:
        """What is born inside the `with` block, and is nothing else, is of this kind."""
        before = self._kind
        self._kind = kind
        try:
            yield
        finally:
            self._kind = before

    def label(self, kind: Kind, tensors: Iterable[Any]) -> None:
        """Say what tensors are for, or, of tensors made of others, their parts; unknown ones are born now."""
        for tensor in tensors:
            for part in parts(tensor):
                self._record(part, kind).kind = kind

    def begin(self) -> None:
        """Look for the peak from now on."""
        self._dead.clear()
        self._begin = self._clock

    def peak(self, device: str) -> Peak:
        """The most that a device has held since `begin`."""
        held = [one for one in (*self._alive.values(), *self._dead) if one.device == device]
        changes = []
        for one in held:
            changes.append((max(one.born, self._begin), one.bytes))
            changes.append((one.died, -one.bytes))
        total = 0
        highest = 0
        when = float(self._begin)
        for time, change in sorted(changes):
            total += change
            if total > highest:
                highest = total
                when = time
        split = dict.fromkeys(KINDS, 0)
        for one in held:
            if one.born <= when < one.died:
                split[one.kind] += one.bytes
        return Peak(highest, split)

    def now(self, device: str) -> dict[Kind, int]:
        """Bytes that a device holds now, by kind."""
        split = dict.fromkeys(KINDS, 0)
        for one in self._alive.values():
            if one.device == device:
                split[one.kind] += one.bytes
        return split

    def _is_weight(self, tensor: Tensor) -> bool:
        held = self._alive.get(tensor.untyped_storage()._cdata)
        return held is not None and held.kind == "weights"

    def _record(self, tensor: Tensor, kind: Kind) -> Held:
        """The storage of a tensor, which is born now if it is not known."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            self._clock += 1
            self._alive[key] = Held(tensor.device.type, storage.nbytes(), self._clock, kind)
            self._references[key] = weakref.ref(storage, lambda _: self._die(key))
        return self._alive[key]

    def _die(self, key: int) -> None:
        self._clock += 1
        held = self._alive.pop(key)
        held.died = self._clock
        del self._references[key]
        if held.died > self._begin:
            self._dead.append(held)


def parts(tensor: Any) -> Iterator[Tensor]:
    """The plain tensors that a tensor is made of; of a plain one itself, of anything else nothing."""
    if isinstance(tensor, Tensor):
        yield from plain_tensors(tensor)
