"""The output of a layer whose weight is quantised, and the gradient of its input; the weight itself has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


# Autocast casts the weights of these in every forward pass; those of other layers it leaves as they are.
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def apply(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """The output of a linear or convolution layer with another weight of the same shape, in the weight's type.

    Args:
        module: The layer.
        x: Its input.
        weight: (out, ...), floating.
    """
    bias: Any = module.bias
    if bias is not None:
        bias = bias.to(weight.dtype)
    x = x.to(weight.dtype)
    if isinstance(module, nn.Linear):
        return functional.linear(x, weight, bias)
    convolution: Any = module
    return convolution._conv_forward(x, weight, bias)


class FromPacked(torch.autograd.Function):
    """A layer's output from a quantised weight, which is unpacked once for each pass and never kept unpacked.

    Autograd would keep the unpacked weight from the forward pass to the backward pass: as much as was saved.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Module, unpack: Callable[[torch.dtype], Tensor]) -> Tensor:
        """The output for `x`, in the type of `x`; `unpack(dtype)` gives the weight."""
        ctx.module = module
        ctx.unpack = unpack
        ctx.shape = x.shape
        return apply(module, x, unpack(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The gradient of `x`."""
        (gradient,) = gradients
        weight = ctx.unpack(gradient.dtype)
        if isinstance(ctx.module, nn.Linear):
            return gradient @ weight, None, None
        return _convolution_input(ctx.module, gradient, weight, ctx.shape), None, None


def _convolution_input(module: Any, gradient: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of the input, (N, C, ...), of a convolution."""
    dimensions = len(module.kernel_size)
    # Only the shape of the input is looked at.
    x = gradient.new_empty(1).expand(shape)
    found, _, _ = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        module.stride,
        module.padding,
        module.dilation,
        False,
        [0] * dimensions,
        module.groups,
        (True, False, False),
    )
    return found
