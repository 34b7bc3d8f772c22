"""Measuring what a training call saves for its backward pass, unit by unit, while all of it is computed again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from .flops import flop_counter
from .memory import UnitBytes, plain_tensors


class SavedBytes:
    """Watches the training calls of a model; the largest number of all calls counts.

    Outside of the parts that are computed again, torch tells of every tensor that it saves. What is saved inside of a
    part is counted by one more run of it, whose result and random numbers are thrown away.

    Args:
        model: The bare model.
        count: Number of its units.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        self._model = model
        self._hooks = ExitStack()
        self._outside: saved_tensors_hooks | None = None
        self._seen: dict[int, Any] = {}  # storages that are counted already, held so that none takes another's place
        self._unit = 0
        self._now: list[UnitBytes] = []
        self.units = [UnitBytes()] * count

    def start(self) -> None:
        """Watch from the next call on."""
        self._hooks.enter_context(self._model.register_forward_pre_hook(self._begin))
        self._hooks.enter_context(self._model.register_forward_hook(self._end, always_call=True))

    def stop(self) -> None:
        """Watch no more."""
        self._hooks.close()
        self._seen.clear()

    def enter_part(self, unit: int, call: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Count a part of a unit, which is about to run so that it can be computed again.

        Args:
            unit: Index of the unit.
            call: The part.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
        """
        if self._outside is None:
            return  # the loop calls the block itself
        self._unit = unit
        for tensor in _tensors(args, kwargs):
            self._keep(tensor)
        part = count_part(call, args, kwargs, known=self._seen)
        before = self._now[unit]
        self._now[unit] = UnitBytes(
            kept=before.kept,
            inside=before.inside + part.inside,
            largest=max(before.largest, part.inside),
            cached=before.cached + part.cached,
            flops=before.flops + part.flops,
        )

    def _begin(self, *ignored: Any) -> None:
        """Forward pre-hook of the model."""
        if not torch.is_grad_enabled():
            return
        self._unit = 0
        self._now = [UnitBytes()] * len(self.units)
        owned = [*self._model.parameters(), *self._model.buffers()]
        self._seen = _storages(owned)
        self._outside = saved_tensors_hooks(self._keep, _unchanged)
        self._outside.__enter__()

    def _end(self, *ignored: Any) -> None:
        """Forward hook of the model."""
        if self._outside is None:
            return
        self._outside.__exit__(None, None, None)
        self._outside = None
        self._seen.clear()
        self.units = [known.most(now) for known, now in zip(self.units, self._now)]

    def _keep(self, tensor: Tensor) -> Tensor:
        """Count a tensor that lives until the backward pass, as the unit's that runs now."""
        new = _storages([tensor])
        found = sum(new[key].nbytes() for key in new.keys() - self._seen.keys())
        self._seen |= new
        before = self._now[self._unit]
        self._now[self._unit] = replace(before, kept=before.kept + found)
        return tensor


def count_part(call: Callable[..., Any], args: Any, kwargs: Any, *, known: dict[int, Any]) -> UnitBytes:
    """What a call saves for its backward pass, and the FLOPs of its forward pass; it leaves no trace.

    Args:
        call: A module, for example.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        known: Storages by their identity that are not counted.
    """
    found: dict[int, Any] = {}

    def pack(tensor: Tensor) -> None:
        found.update(_storages([tensor]))

    devices = set()
    kind = "cuda"
    for tensor in _tensors(args, kwargs):
        # `fork_rng` takes the CPU's generator in any case.
        if tensor.device.type not in ("cpu", "meta"):
            devices.add(tensor.device)
            kind = tensor.device.type
    # A counter of the loop's own must not count this run.
    with _disable_current_modes(), torch.random.fork_rng(devices, device_type=kind):
        counter = flop_counter()
        with counter, saved_tensors_hooks(pack, _unchanged):
            call(*args, **kwargs)
    sizes = {}
    storages = {}
    for key in found.keys() - known.keys():
        sizes[key] = found[key].nbytes()
        storages[key] = weakref.ref(found[key])
    found.clear()
    cached = 0
    for key, size in sizes.items():
        # Only autocast holds what is still there.
        if storages[key]() is not None:
            cached += size
    inside = sum(sizes.values())
    return UnitBytes(inside=inside, cached=cached, flops=counter.get_total_flops())


def _tensors(*values: Any) -> list[Tensor]:
    """All tensors in nested arguments."""
    leaves = tree_leaves(values)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _storages(tensors: Iterable[Tensor]) -> dict[int, Any]:
    """The memory behind tensors, by its identity."""
    storages = [part.untyped_storage() for tensor in tensors for part in plain_tensors(tensor)]
    return {storage._cdata: storage for storage in storages}


def _unchanged(saved: Any) -> Any:
    return saved
