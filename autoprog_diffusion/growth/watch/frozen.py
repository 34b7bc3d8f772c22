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
        self._parameters.clear()
        for name, parameter in frozen.items():
            if parameter.is_floating_point():
                self._parameters[name] = parameter
        views = self._views()
        self._sizes = [len(view) for view in views]
        self._values = _joined(views)
        self._tolerance = TOLERANCE * self._precision() * self._values.abs()

    def clear(self) -> None:
        """Forget all samples."""
        self.take({})

    def moved(self) -> list[str]:
        """Names of the parameters that are not what they were."""
        views = self._views()
        now = _joined(views)
        before = self._values
        equal = now == before  # also infinite ones
        near = (now - before).abs() <= self._tolerance
        never_numbers = now.isnan() & before.isnan()
        wrong = ~(equal | near | never_numbers)
        if not wrong.any():
            return []
        found = []
        parts = wrong.split(self._sizes)
        for name, part in zip(self._parameters, parts):
            if part.any():
                found.append(name)
        return found

    def _views(self) -> list[Tensor]:
        """Samples of every parameter, (n,) each, of its own type and device."""
        views = []
        for parameter in self._parameters.values():
            local = local_part(parameter)
            views.append(_spread(local))
        return views

    def _precision(self) -> Tensor:
        """Relative precision of every sampled value, as its type has it."""
        precision = []
        for parameter in self._parameters.values():
            info = torch.finfo(parameter.dtype)
            precision.append(info.eps)
        sizes = torch.tensor(self._sizes, dtype=torch.long)
        return torch.tensor(precision, dtype=torch.float32).repeat_interleave(sizes, output_size=sum(self._sizes))


@torch.no_grad()
def _joined(views: list[Tensor]) -> Tensor:
    """Tensors (n,) one after the other, float32, on the CPU."""
    if not views:
        return torch.empty(0)
    kinds = {(view.device, view.dtype) for view in views}
    # Parts of a model may be offloaded, or of another type: then every tensor travels alone.
    if len(kinds) > 1:
        views = [view.cpu().float() for view in views]
    joined = torch.cat(views)
    return joined.cpu().float()


def _spread(tensor: Tensor) -> Tensor:
    """Up to `SAMPLES` elements of a tensor, (n,), without copying it."""
    flat = tensor.detach()
    channels_last = flat.dim() == 4 and flat.is_contiguous(memory_format=torch.channels_last)
    if channels_last:
        flat = flat.permute(0, 2, 3, 1)
    flat = flat.reshape(-1)
    stride = max(1, math.ceil(len(flat) / SAMPLES))
    return flat[::stride]
