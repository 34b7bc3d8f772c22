"""Bytes of parameters, of their gradients and of optimizers' state, exactly, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from autoprog_diffusion.growth.choices import FrozenDtype
from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.growth.storage.compute import LAYERS
from autoprog_diffusion.growth.storage.formats import NF4_BLOCK, NF4_SCALES, check_format
from autoprog_diffusion.growth.storage.model import FrozenStorage
from autoprog_diffusion.growth.units import Layout


FLOAT = 4
HALF = 2
QUANTISED_FROM = 4096  # torchao and bitsandbytes leave the state of smaller tensors alone
# Optimizer -> bytes of a number of its state, numbers that share a scale, and bytes of the table of a tensor's codes.
LOW_BIT = {
    "adamw8bit": (1.0, 256, 256 * FLOAT),
    "adamw4bit": (0.5, 128, 16 * FLOAT),
    "adamw_fp8": (1.0, 256, 0),
    "adamw8bit_bnb": (1.0, 256, 256 * FLOAT),
}
MOMENTS = 2
# Bytes a number that an optimizer needs while it steps, with float32 and with bfloat16 weights: of all parameters of a
# call together for `adamw`, of the largest tensor for the others. Measured by the tracker, uncompiled: torchao
# compiles its step on a GPU that has Triton, which needs less. bitsandbytes has kernels of its own.
STEP_BYTES = {
    "adamw": (4.0, 4.0),
    "adamw8bit": (53.1, 57.1),
    "adamw4bit": (53.1, 57.1),
    "adamw_fp8": (24.0, 41.0),
    "adamw8bit_bnb": (0.0, 0.0),
    "adafactor": (8.1, 8.1),
}
# Bytes a number that it takes to compute with a frozen weight: the copy, and what is needed to make it.
UNPACK_BYTES: dict[FrozenDtype, float] = {"bfloat16": 0.0, "float8": 8.1, "int8": 8.1, "nf4": 20.1}


@dataclass(frozen=True)
class ParameterSize:
    """One parameter.

    Attributes:
        shape: Its shape.
        layer: Whether it is the weight of a linear or convolution layer, which trains in bfloat16 if weights do.
        stored: Formats that can hold it while it is frozen.
    """

    shape: tuple[int, ...]
    layer: bool
    stored: tuple[FrozenDtype, ...]

    @property
    def numel(self) -> int:
        """Number of its values."""
        return math.prod(self.shape)

    def weight_bytes(self, dtype: str) -> int:
        """Bytes while it trains, and of its gradient, if weights train in `dtype`."""
        return self.numel * (HALF if dtype == "bfloat16" and self.layer else FLOAT)

    def frozen_bytes(self, dtype: FrozenDtype | None) -> int:
        """Bytes on the device while it is frozen and held in `dtype`."""
        if dtype is None or dtype not in self.stored:
            return self.numel * FLOAT
        if dtype == "bfloat16":
            return self.numel * HALF
        if dtype == "nf4":
            return nf4_bytes(self.numel)
        # Of every output a scale, and in int8 a zero point.
        return self.numel + self.shape[0] * (FLOAT + (dtype == "int8"))

    def state_bytes(self, optimizer: str) -> int:
        """Bytes of an optimizer's state on the device."""
        if optimizer == "adafactor":
            return adafactor_bytes(self.shape)
        if optimizer in LOW_BIT:
            each, block, table = LOW_BIT[optimizer]
            if self.numel >= QUANTISED_FROM and self.numel % block == 0:
                return MOMENTS * (int(self.numel * each) + self.numel // block * FLOAT + table)
        return MOMENTS * self.numel * FLOAT


def nf4_bytes(numel: int) -> int:
    """Bytes of a weight in NF4 with double quantisation, its tables included."""
    blocks = numel // NF4_BLOCK
    scales = blocks // math.gcd(blocks, NF4_SCALES)
    return numel // 2 + blocks + scales * FLOAT + FLOAT + 16 * FLOAT


def adafactor_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of Adafactor's state: a row and a column of every matrix, or every value of a vector."""
    size = 1  # the root mean square of the tensor
    if len(shape) < 2:
        size += math.prod(shape)
    else:
        *others, rows, columns = shape
        size += math.prod(others) * (rows + columns)
    return size * FLOAT


def parameter_sizes(model: nn.Module, layout: Layout) -> list[list[ParameterSize]]:
    """The parameters of every unit.

    Args:
        model: The bare model.
        layout: Its units.
    """
    weights = {module.weight for module in model.modules() if isinstance(module, LAYERS)}
    formats: dict[Any, list[FrozenDtype]] = {}
    for dtype in UNPACK_BYTES:
        if is_installed(dtype):
            for layer in FrozenStorage(model, layout, dtype).find():
                formats.setdefault(layer.weight, []).append(dtype)
    named = dict(model.named_parameters())
    sizes = []
    for unit in layout.units:
        own = [named[name] for name in unit.parameters]
        sizes.append([ParameterSize(tuple(each.shape), each in weights, tuple(formats.get(each, ()))) for each in own])
    return sizes


def is_installed(dtype: FrozenDtype) -> bool:
    """Whether the library of a format is there."""
    try:
        check_format(dtype)
    except ConfigError:
        return False
    return True


def largest(sizes: Iterable[ParameterSize]) -> int:
    """Number of values of the largest parameter; 0 without one."""
    return max((size.numel for size in sizes), default=0)


def buffer_bytes(model: nn.Module) -> int:
    """Bytes of a model's buffers."""
    return sum(
        buffer.numel() * buffer.element_size() for buffer in model.buffers() if isinstance(buffer, torch.Tensor)
    )
