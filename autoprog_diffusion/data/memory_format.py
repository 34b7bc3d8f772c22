"""`in_channels_last`: convolutions of a frozen network, computed with the channels of a pixel side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def in_channels_last(module: nn.Module) -> Iterator[torch.memory_format]:
    """Hold the weights of two-dimensional convolutions in the order that the CPU's kernels compute in.

    Otherwise the kernels put inputs, weights and outputs of every convolution into that order and back: encoding with
    an `AutoencoderKL` takes longer. Weights are as before in the end, also after an error.

    Args:
        module: A frozen network. Nothing changes on other devices, where it was not measured, and with convolutions
            over frames.

    Yields:
        The memory format that its inputs should have.
    """
    weights = [parameter for parameter in module.parameters() if parameter.dim() >= 4]
    if any(weight.dim() != 4 or weight.device.type != "cpu" for weight in weights):
        yield torch.contiguous_format
        return
    before = [weight.data for weight in weights]
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    try:
        yield torch.channels_last
    finally:
        for weight, data in zip(weights, before):
            weight.data = data
