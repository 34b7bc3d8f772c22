"""Samples of frozen weights: whether something has moved them although they are frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..backends.fsdp2 import local_part


SAMPLES = 64  # elements of a tensor that are looked at; all of a small one
# A layer that keeps its own weights normalised may move them by a rounding error.
TOLERANCE = 4  # in units of the type's precision


class FrozenSamples:
    """Values of some elements of every frozen parameter, to compare with later."""

    def __init__(self) -> None:
        self._parameters: dict[str, nn.Parameter] = {}
        self._sizes: list[int] = []
        self._values = torch.empty(0)
        self._tolerance = torch.empty(0)

    def take(self, frozen: Mapping[str, nn.Parameter]) -> None:
        """Sample parameters, by name; what was sampled before is forgotten. Takes one transfer from the device."""
        self._parameters = {name: tensor for name, tensor in frozen.items() if tensor.is_floating_point()}
        views = self._views()
        self._sizes = [len(view) for view in views]
        self._values = _joined(views)
        precision = [torch.finfo(parameter.dtype).eps for parameter in self._parameters.values()]
        sizes = torch.tensor(self._sizes, dtype=torch.long)
        relative = torch.tensor(precision, dtype=torch.float32).repeat_interleave(sizes)
        self._tolerance = TOLERANCE * relative * self._values.abs()

    def clear(self) -> None:
        """Forget all samples."""
        self.take({})

    def moved(self) -> list[str]:
        """Names of the parameters that are not what they were."""
        now = _joined(self._views())
        # Written so that a value that is no number any more counts; one that never was does not.
        same = ((now - self._values).abs() <= self._tolerance) | (now == self._values)
        wrong = ~(same | (now.isnan() & self._values.isnan()))
        if not wrong.any():
            return []
        parts = wrong.split(self._sizes)
        return [name for name, part in zip(self._parameters, parts) if part.any()]

    def _views(self) -> list[Tensor]:
        """Samples of every parameter, (n,) each, of its own type and device."""
        return [_spread(local_part(parameter)) for parameter in self._parameters.values()]


@torch.no_grad()
def _joined(views: list[Tensor]) -> Tensor:
    """Tensors (n,) one after the other, float32, on the CPU."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    # Parts of a model may be offloaded, or of another type.
    for index, view in enumerate(views):
        groups.setdefault((view.device, view.dtype), []).append(index)
    found = [torch.empty(0)] * len(views)
    for indices in groups.values():
        joined = torch.cat([views[index] for index in indices]).cpu().float()
        parts = joined.split([len(views[index]) for index in indices])
        for index, part in zip(indices, parts):
            found[index] = part
    return torch.cat(found) if found else torch.empty(0)


def _spread(tensor: Tensor) -> Tensor:
    """Up to `SAMPLES` elements of a tensor, (n,), without copying it."""
    flat = tensor.detach()
    channels_last = flat.dim() == 4 and flat.is_contiguous(memory_format=torch.channels_last)
    if channels_last:
        flat = flat.permute(0, 2, 3, 1)
    flat = flat.reshape(-1)
    stride = max(1, math.ceil(len(flat) / SAMPLES))
    return flat[::stride]
