"""Formats that hold a frozen weight in less memory than float32: bfloat16 by torch, the others by torchao."""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any

import torch
from torch import Tensor, nn

from ..choices import FrozenDtype
from ..errors import ConfigError


QUANTISED: tuple[FrozenDtype, ...] = ("float8", "int8", "nf4")
NF4_BLOCK = 64  # elements that share a scale (QLoRA, arXiv 2305.14314, section 3)
NF4_SCALES = 256  # scales that share a scale of their own (double quantisation, the same section)
EXTRA = "low_precision"


def check_format(dtype: FrozenDtype | None) -> None:
    """Refuse a format whose library is missing.

    Raises:
        ConfigError: torchao is not installed; the message names the extra.
    """
    if dtype in QUANTISED and importlib.util.find_spec("torchao") is None:
        raise ConfigError(
            f'frozen_dtype={dtype!r} needs torchao: pip install "autoprog-diffusion[{EXTRA}]", or use '
            'frozen_dtype="bfloat16", which needs torch alone.'
        )


def fits(weight: Tensor, dtype: FrozenDtype) -> bool:
    """Whether a weight of this shape can be held in a format; nf4 takes whole groups of 64 elements."""
    return dtype != "nf4" or weight.numel() % NF4_BLOCK == 0


def quantise(weight: Tensor, dtype: FrozenDtype) -> Any:
    """A weight in a quantised format.

    Args:
        weight: (out, ...), floating; all but the first dimension are taken as one.
        dtype: `float8` and `int8` have a scale for each output, `nf4` one for 64 elements.

    Returns:
        A tensor subclass of torchao, (out, in); a bfloat16 tensor where the format gives no number, as float8 does for
        an output whose weights are all zero.
    """
    matrix = weight.detach().flatten(1)
    torchao = importlib.import_module("torchao.quantization")
    if dtype == "nf4":
        blocks = matrix.numel() // NF4_BLOCK
        # Before torchao 0.17 it lay in another module.
        nf4: Any = torchao if hasattr(torchao, "to_nf4") else importlib.import_module("torchao.dtypes")
        return nf4.to_nf4(matrix.contiguous(), NF4_BLOCK, math.gcd(blocks, NF4_SCALES))
    configs = {"float8": torchao.Float8WeightOnlyConfig, "int8": torchao.Int8WeightOnlyConfig}
    # Its public way to a tensor is by a layer.
    layer = nn.Linear(1, 1, bias=False, device="meta")
    layer.weight = nn.Parameter(matrix, requires_grad=False)
    torchao.quantize_(layer, configs[dtype]())
    packed = layer.weight.data
    known = type(matrix) is Tensor and not matrix.is_meta
    if known and not torch.isfinite(packed.dequantize()).all():
        return matrix.to(torch.bfloat16)
    return packed


def dequantise(packed: Any, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The weight that a quantised one stands for, of `shape` and `dtype`."""
    if type(packed) is Tensor:
        return packed.to(dtype).view(shape)
    whole = packed.get_original_weight() if hasattr(packed, "get_original_weight") else packed.dequantize()
    return whole.to(dtype).view(shape)
