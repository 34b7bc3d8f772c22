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
        self._values: list[Tensor] = []

    def take(self, frozen: Mapping[str, nn.Parameter]) -> None:
        """Sample parameters, by name; what was sampled before is forgotten. Takes one transfer from the device."""
        self._parameters = {name: tensor for name, tensor in frozen.items() if tensor.is_floating_point()}
        self._values = _samples(self._parameters)

    def clear(self) -> None:
        """Forget all samples."""
        self.take({})

    def moved(self) -> list[str]:
        """Names of the parameters that are not what they were."""
        found = []
        for name, before, now in zip(self._parameters, self._values, _samples(self._parameters)):
            precision = TOLERANCE * torch.finfo(self._parameters[name].dtype).eps
            if not torch.allclose(before, now, rtol=precision, atol=0.0, equal_nan=True):
                found.append(name)
        return found


@torch.no_grad()
def _samples(parameters: Mapping[str, nn.Parameter]) -> list[Tensor]:
    """Up to `SAMPLES` elements of every parameter, evenly spread over its memory; float32, on the CPU."""
    views = [_spread(local_part(parameter)).float() for parameter in parameters.values()]
    if not views:
        return []
    devices = {view.device for view in views}
    # Parts of a model may be offloaded.
    if len(devices) > 1:
        views = [view.cpu() for view in views]
    sizes = [len(view) for view in views]
    return list(torch.cat(views).cpu().split(sizes))


def _spread(tensor: Tensor) -> Tensor:
    """Up to `SAMPLES` elements of a tensor, (n,), without copying it."""
    flat = tensor.detach()
    channels_last = flat.dim() == 4 and flat.is_contiguous(memory_format=torch.channels_last)
    if channels_last:
        flat = flat.permute(0, 2, 3, 1)
    flat = flat.reshape(-1)
    stride = max(1, math.ceil(len(flat) / SAMPLES))
    return flat[::stride]
