"""Bytes of a training step, and which blocks must be computed again in the backward pass for it to fit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

import torch
from torch import Tensor

from .bare import bare
from .values import JSON


GB = 10**9  # a card of 24 GB has 24 GiB, which leaves room for its context


@dataclass(frozen=True)
class UnitBytes:
    """What the forward pass of one unit leaves for the backward pass.

    A unit is computed again part by part: a transformer's block is one part, a UNet's has several.

    Attributes:
        kept: Bytes in any case: inputs of its parts, and what is computed outside of them.
        inside: Bytes more if it is not computed again.
        largest: Those of the part that has most of them.
        cached: Bytes of `inside` that last until the end of the forward pass in any case: what autocast casts of the
            weights.
        flops: Of a forward pass of its parts.
    """

    kept: int = 0
    inside: int = 0
    largest: int = 0
    cached: int = 0
    flops: int = 0

    def most(self, other: UnitBytes) -> UnitBytes:
        """The larger of both, number by number."""
        return UnitBytes(*map(max, astuple(self), astuple(other)))


@dataclass(frozen=True)
class StageMemory:
    """Predicted bytes of a training step of a stage, and the blocks that it computes again.

    Attributes:
        recomputed: Names of the blocks whose activations are computed again in the backward pass.
        weights: Bytes of the model's parameters and buffers.
        gradients: Bytes of the gradients of what trains, and of the buckets that the ranks send.
        optimizer: Bytes of the optimizer's state.
        activations: Most bytes of activations at any time.
    """

    recomputed: tuple[str, ...]
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def to_dict(self) -> JSON:
        """The prediction as plain JSON types."""
        return {**asdict(self), "recomputed": list(self.recomputed)}

    def __str__(self) -> str:
        parts = [f"{name} {getattr(self, name) / GB:.2f}" for name in ("weights", "gradients", "optimizer")]
        return f"{self.total / GB:.2f} GB ({', '.join(parts)}, activations {self.activations / GB:.2f})"


def peak_bytes(units: Sequence[UnitBytes], recomputed: Collection[int]) -> int:
    """Most bytes of activations at any time of a forward and backward pass.

    The backward pass frees the units from the last one on; one that is computed again then holds its largest part.

    Args:
        units: All units, in forward order.
        recomputed: Indices of those that are computed again.
    """
    held = 0
    peak = 0
    cached = 0
    for index, unit in enumerate(units):
        held += unit.kept
        if index in recomputed:
            cached += unit.cached
            peak = max(peak, held + unit.largest)
        else:
            held += unit.inside
        peak = max(peak, held)
    return max(peak, held + cached)


def choose_recomputed(units: Sequence[UnitBytes], candidates: Collection[int], room: int) -> set[int]:
    """The units to compute again so that activations take at most `room` bytes; all candidates if none fits.

    One after the other is spared: first those that save most FLOPs for every byte they hold, the last units first.

    Args:
        units: All units, in forward order.
        candidates: Indices of those that may be computed again.
        room: Bytes.
    """
    chosen = set(candidates)
    order = sorted(candidates, key=lambda index: (units[index].flops / max(1, units[index].inside), index))
    for index in reversed(order):
        fewer = chosen - {index}
        if peak_bytes(units, fewer) <= room:
            chosen = fewer
    return chosen


def held_bytes(tensors: Iterable[Tensor], optimizers: Iterable[Any], *, bucketed: bool) -> StageMemory:
    """Exact bytes of weights, gradients and optimizer state, as far as they lie on the device of what trains.

    Args:
        tensors: All weights and buffers.
        optimizers: Whose state exists by now.
        bucketed: Whether the ranks send gradients from buckets beside them.
    """
    weights = list(tensors)
    trained = [tensor for tensor in weights if tensor.requires_grad]
    device = trained[0].device
    known = list(map(bare, optimizers))
    of_states = [value for optimizer in known for own in optimizer.state.values() for value in own.values()]
    # Of state that lies in CPU memory, what a step brings to the device.
    passing = sum(getattr(optimizer, "moved_bytes", 0) for optimizer in known)
    return StageMemory(
        recomputed=(),
        weights=_bytes_on(device, weights),
        gradients=sum(map(tensor_bytes, trained)) * (1 + bucketed),
        optimizer=passing + _bytes_on(device, [value for value in of_states if isinstance(value, Tensor)]),
    )


def _bytes_on(device: torch.device, tensors: Iterable[Tensor]) -> int:
    return sum(tensor_bytes(tensor) for tensor in tensors if tensor.device == device)


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements, of a quantised or sharded one those that it really holds."""
    return sum(part.numel() * part.element_size() for part in plain_tensors(tensor))


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor itself, or the plain ones that a quantised or sharded one is made of."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    names, _ = flatten()
    for name in names:
        part = getattr(tensor, name)
        # A sharded one also names the mesh of its ranks.
        if isinstance(part, Tensor):
            yield from plain_tensors(part)
