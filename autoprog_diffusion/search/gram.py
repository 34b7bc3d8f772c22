"""Gram matrices of per-sample gradients, layer by layer, mostly without ever forming those gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


Grams = dict[str, Tensor]  # name of a parameter (here: inside its module) or of a unit -> (N, N) float64
GramFunction = Callable[[Any, Tensor, Tensor], Grams]  # of a module, its inputs, and the gradients of its output

SPLIT = 2**14  # columns that are multiplied in float32 before they are summed in float64


def pair_gram(inputs: Tensor, gradients: Tensor) -> Tensor:
    """Gram matrix of the per-sample gradients of a matrix: G_ij = sum_{t,s} <a_it, a_js> <b_it, b_js>.

    The gradient of sample i is sum_t b_it a_it^T. Either those sums are formed (N, O, I) or the two inner products
    (N T, N T) are, whichever needs fewer multiplications.

    Args:
        inputs: a, (N, T, I).
        gradients: b, (N, T, O), of the summed output with respect to the layer's output.

    Returns:
        (N, N) float64.
    """
    count, tokens, width = inputs.shape
    outputs = gradients.shape[2]
    # Multiplications divided by N: N sums of T outer products and N^2 products of them, or N^2 T^2 pairs.
    if (tokens + count) * width * outputs <= count * tokens**2 * (width + outputs):
        formed = torch.einsum("nto,nti->noi", gradients, inputs)
        return vector_gram(formed.flatten(1))
    all_inputs = inputs.flatten(0, 1).T  # (I, N T)
    all_gradients = gradients.flatten(0, 1).T  # (O, N T)
    rows = []
    # One sample at a time: (T, N T) instead of (N T, N T) in memory.
    for a, b in zip(inputs, gradients):
        products = (a @ all_inputs) * (b @ all_gradients)
        rows.append(products.view(tokens, count, tokens).sum(dim=(0, 2), dtype=torch.float64))
    return torch.stack(rows)


def vector_gram(vectors: Tensor) -> Tensor:
    """(N, P) per-sample gradients -> (N, N) float64 Gram matrix.

    Short stretches are multiplied as they are and summed in float64: kappa magnifies rounding, and a copy of the
    gradients in float64 would be the largest thing in memory.
    """
    products = [part @ part.T for part in vectors.split(SPLIT, dim=1)]
    return torch.stack(products).sum(0, dtype=torch.float64)


def linear_gram(module: Any, inputs: Tensor, gradients: Tensor) -> Grams:
    """Linear: inputs (N, ..., I), output gradients (N, ..., O)."""
    b = as_tokens(gradients)
    return _grams(module, pair_gram(as_tokens(inputs), b), b)


def conv_gram(module: Any, inputs: Tensor, gradients: Tensor) -> Grams:
    """Conv2d: inputs (N, C, H, W), output gradients (N, O, h, w); every window is a token."""
    windows = F.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)
    a = windows.mT  # (N, L, C k k)
    b = gradients.flatten(2).mT  # (N, L, O)
    # Channels of different groups never meet in a gradient: the Gram matrices of the groups add up.
    groups = map(pair_gram, a.chunk(module.groups, dim=2), b.chunk(module.groups, dim=2))
    return _grams(module, torch.stack(list(groups)).sum(0), b)


def group_norm_gram(module: Any, inputs: Tensor, gradients: Tensor) -> Grams:
    """GroupNorm, inputs and output gradients (N, C, ...): the scale's gradient is normalised input times output's."""
    normal = F.group_norm(inputs, module.num_groups, eps=module.eps)
    return _scale_grams(module, normal.flatten(2).mT, gradients.flatten(2).mT)


def norm_gram(module: Any, inputs: Tensor, gradients: Tensor) -> Grams:
    """LayerNorm and RMSNorm over the last axis: the scale's gradient is the normalised input times the output's."""
    normalise = F.layer_norm if isinstance(module, nn.LayerNorm) else F.rms_norm
    normal = normalise(inputs, inputs.shape[-1:], eps=module.eps)
    return _scale_grams(module, as_tokens(normal), as_tokens(gradients))


def embedding_gram(module: Any, inputs: Tensor, gradients: Tensor) -> Grams:
    """Embedding: only equal indices meet. Inputs (N, ...) integers, output gradients (N, ..., D)."""
    index = inputs.reshape(len(inputs), -1)
    b = as_tokens(gradients)
    same = index[:, None, :, None] == index[None, :, None, :]  # (N, N, T, T)
    products = torch.einsum("ntd,msd->nmts", b, b)
    return {"weight": (products * same).sum(dim=(2, 3), dtype=torch.float64)}


def find_gram(module: nn.Module) -> GramFunction | None:
    """The function for a module's own parameters, or None where they need per-sample gradients."""
    match module:
        case nn.Linear():
            return linear_gram
        case nn.Conv2d(padding_mode="zeros", padding=tuple()):
            return conv_gram
        case nn.GroupNorm():
            return group_norm_gram
        case nn.Embedding(max_norm=None, scale_grad_by_freq=False):
            return embedding_gram
        case nn.LayerNorm(weight=Tensor(ndim=1)):
            return norm_gram
        case nn.Module(weight=Tensor(ndim=1)) if type(module).__name__ == "RMSNorm":  # torch's, Diffusers', timm's
            return norm_gram
    return None


def as_tokens(x: Tensor) -> Tensor:
    """(N, ..., D) -> (N, T, D): every axis between the first and the last is one of tokens."""
    return x.reshape(len(x), -1, x.shape[-1])


def _scale_grams(module: Any, normal: Tensor, gradients: Tensor) -> Grams:
    """Those of a layer that scales every channel, from its normalised inputs and output gradients, (N, T, C)."""
    products = normal * gradients
    return _grams(module, vector_gram(products.sum(1)), gradients)


def _grams(module: Any, weight: Tensor, gradients: Tensor) -> Grams:
    """The Gram matrix of the weight, and of the bias if there is one, from the output gradients (N, T, O)."""
    if getattr(module, "bias", None) is None:
        return {"weight": weight}
    return {"weight": weight, "bias": vector_gram(gradients.sum(1))}
