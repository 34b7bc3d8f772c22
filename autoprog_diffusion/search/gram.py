"""Gram matrices of per-sample gradients, layer by layer, mostly without ever forming those gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


Grams = dict[str, Tensor]  # name of a parameter (here: inside its module) or of a unit -> (N, N) float64
GramFunction = Callable[[Any, Tensor, Tensor], Grams]  # module, its inputs, gradients of its output

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
    if_formed = count * tokens * width * outputs + count * count * width * outputs
    if_paired = (count * tokens) ** 2 * (width + outputs)
    if if_formed <= if_paired:
        formed = torch.einsum("nto,nti->noi", gradients, inputs)
        return vector_gram(formed.flatten(1))
    all_inputs = inputs.flatten(0, 1).T  # (I, N T)
    all_gradients = gradients.flatten(0, 1).T  # (O, N T)
    rows = []
    for a, b in zip(inputs, gradients):  # one sample at a time: (T, N T) instead of (N T, N T) in memory
        products = (a @ all_inputs) * (b @ all_gradients)
        rows.append(products.view(tokens, count, tokens).sum(dim=(0, 2), dtype=torch.float64))
    return torch.stack(rows)


def vector_gram(vectors: Tensor) -> Tensor:
    """(N, P) per-sample gradients -> (N, N) float64 Gram matrix.

    Short stretches are multiplied as they are and summed in float64: kappa magnifies rounding, and a copy of the
    gradients in float64 would be the largest thing in memory.
    """
    count = len(vectors)
    gram = torch.zeros(count, count, dtype=torch.float64, device=vectors.device)
    for part in vectors.split(SPLIT, dim=1):
        gram += part @ part.T
    return gram


def linear_gram(module: Any, inputs: Tensor, gradients: Tensor) -> Grams:
    """Linear: inputs (N, ..., I), output gradients (N, ..., O)."""
    a = as_tokens(inputs)
    b = as_tokens(gradients)
    return _grams(module, pair_gram(a, b), b.sum(1))


def conv_gram(module: Any, inputs: Tensor, gradients: Tensor) -> Grams:
    """Conv2d: inputs (N, C, H, W), output gradients (N, O, h, w); every window is a token."""
    windows = F.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)  # (N, C k k, L)
    outputs = gradients.flatten(2)  # (N, O, L)
    # Channels of different groups never meet in a gradient: the Gram matrices of the groups add up.
    a = windows.transpose(1, 2).chunk(module.groups, dim=2)
    b = outputs.transpose(1, 2).chunk(module.groups, dim=2)
    weight = torch.stack([pair_gram(*group) for group in zip(a, b)])
    return _grams(module, weight.sum(0), outputs.sum(2))


def group_norm_gram(module: Any, inputs: Tensor, gradients: Tensor) -> Grams:
    """GroupNorm, inputs and output gradients (N, C, ...): the scale's gradient is normalised input times output's."""
    normal = F.group_norm(inputs, module.num_groups, eps=module.eps)
    products = (normal * gradients).flatten(2)
    return _grams(module, vector_gram(products.sum(2)), gradients.flatten(2).sum(2))


def norm_gram(module: Any, inputs: Tensor, gradients: Tensor) -> Grams:
    """LayerNorm and RMSNorm over the last axis: the scale's gradient is the normalised input times the output's."""
    if isinstance(module, nn.LayerNorm):
        normal = F.layer_norm(inputs, inputs.shape[-1:], eps=module.eps)
    else:
        normal = F.rms_norm(inputs, inputs.shape[-1:], eps=module.eps)
    products = as_tokens(normal * gradients)
    return _grams(module, vector_gram(products.sum(1)), as_tokens(gradients).sum(1))


def embedding_gram(module: Any, inputs: Tensor, gradients: Tensor) -> Grams:
    """Embedding: only equal indices meet. Inputs (N, ...) integers, output gradients (N, ..., D)."""
    index = inputs.reshape(len(inputs), -1)
    b = as_tokens(gradients)
    same = index[:, None, :, None] == index[None, :, None, :]  # (N, N, T, T)
    products = torch.einsum("ntd,msd->nmts", b, b)
    return {"weight": (products * same).sum(dim=(2, 3), dtype=torch.float64)}


def find_gram(module: nn.Module) -> GramFunction | None:
    """The function for a module's own parameters, or None where they need per-sample gradients."""
    if isinstance(module, nn.Linear):
        return linear_gram
    if isinstance(module, nn.Conv2d):
        plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return conv_gram if plain else None
    if isinstance(module, nn.GroupNorm):
        return group_norm_gram
    if isinstance(module, nn.Embedding):
        plain = module.max_norm is None and not module.scale_grad_by_freq
        return embedding_gram if plain else None
    if isinstance(module, nn.LayerNorm) or type(module).__name__ == "RMSNorm":  # torch's, Diffusers' and timm's
        weight = getattr(module, "weight", None)
        return norm_gram if isinstance(weight, Tensor) and weight.dim() == 1 else None
    return None


def as_tokens(x: Tensor) -> Tensor:
    """(N, ..., D) -> (N, T, D): every axis between the first and the last is one of tokens."""
    return x.reshape(len(x), -1, x.shape[-1])


def _grams(module: Any, weight: Tensor, bias_gradients: Tensor) -> Grams:
    """The Gram matrix of the weight, and of the bias where there is one: its per-sample gradients are (N, O)."""
    if getattr(module, "bias", None) is None:
        return {"weight": weight}
    return {"weight": weight, "bias": vector_gram(bias_gradients)}
