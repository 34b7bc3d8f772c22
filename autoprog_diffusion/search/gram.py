"""Gram matrices of per-sample gradients, layer by layer, mostly without ever forming those gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


Grams = dict[str, Tensor]  # parameter's name inside its module -> (N, N) float64


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
    formed = count * tokens * width * outputs + count * count * width * outputs
    paired = (count * tokens) ** 2 * (width + outputs)
    if formed <= paired:
        flat = torch.einsum("nto,nti->noi", gradients, inputs).flatten(1)
        return vector_gram(flat)
    gram = torch.zeros(count, count, dtype=torch.float64, device=inputs.device)
    for i in range(count):
        products = (inputs[i] @ inputs.flatten(0, 1).T) * (gradients[i] @ gradients.flatten(0, 1).T)  # (T, N T)
        gram[i] = products.view(tokens, count, tokens).sum(dim=(0, 2), dtype=torch.float64)
    return gram


def vector_gram(vectors: Tensor) -> Tensor:
    """(N, P) per-sample gradients -> (N, N) float64 Gram matrix.

    Short stretches are multiplied as they are and summed in float64: kappa magnifies rounding, and a copy of the
    gradients in float64 would be the largest thing in memory.
    """
    gram = torch.zeros(len(vectors), len(vectors), dtype=torch.float64, device=vectors.device)
    for part in vectors.split(2**14, dim=1):
        gram += part @ part.T
    return gram


def linear_gram(module: Any, inputs: Tensor, gradients: Tensor) -> Grams:
    """Linear: inputs (N, ..., I), output gradients (N, ..., O)."""
    a = inputs.flatten(1, -2) if inputs.dim() > 2 else inputs[:, None]
    b = gradients.flatten(1, -2) if gradients.dim() > 2 else gradients[:, None]
    return _with_bias(module, pair_gram(a, b), b.sum(1))


def conv_gram(module: Any, inputs: Tensor, gradients: Tensor) -> Grams:
    """Conv2d: inputs (N, C, H, W), output gradients (N, O, h, w); every window is a token."""
    windows = F.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)  # (N, C k k, L)
    groups = module.groups
    a = windows.unflatten(1, (groups, -1)).transpose(2, 3)  # (N, G, L, C k k / G)
    b = gradients.flatten(2).unflatten(1, (groups, -1)).transpose(2, 3)  # (N, G, L, O / G)
    weight = sum(pair_gram(a[:, g], b[:, g]) for g in range(groups))
    return _with_bias(module, weight, gradients.flatten(2).sum(2))


def norm_gram(module: Any, inputs: Tensor, gradients: Tensor) -> Grams:
    """LayerNorm, GroupNorm and RMSNorm: the gradient of the scale is the normalised input times the output's."""
    if isinstance(module, nn.GroupNorm):
        normal = F.group_norm(inputs, module.num_groups, None, None, module.eps)
        products, shift = (x.flatten(2).sum(2) for x in (normal * gradients, gradients))
    else:
        shape = tuple(module.weight.shape)
        if isinstance(module, nn.LayerNorm):
            normal = F.layer_norm(inputs, shape, None, None, module.eps)
        else:
            eps = module.eps if module.eps is not None else torch.finfo(inputs.dtype).eps
            normal = inputs * torch.rsqrt(inputs.pow(2).mean(-1, keepdim=True) + eps)
        products, shift = (x.reshape(len(x), -1, shape[-1]).sum(1) for x in (normal * gradients, gradients))
    return _with_bias(module, vector_gram(products), shift)


def embedding_gram(module: Any, inputs: Tensor, gradients: Tensor) -> Grams:
    """Embedding: only equal indices meet. Inputs (N, ...) integers, output gradients (N, ..., D)."""
    index, b = inputs.reshape(len(inputs), -1), gradients.reshape(len(gradients), -1, gradients.shape[-1])
    same = index[:, None, :, None] == index[None, :, None, :]  # (N, N, T, T)
    products = torch.einsum("ntd,msd->nmts", b, b)
    return {"weight": (products * same).sum(dim=(2, 3), dtype=torch.float64)}


def kernel_for(module: nn.Module) -> Callable[[Any, Tensor, Tensor], Grams] | None:
    """The function for a module's own parameters, or None where they need per-sample gradients."""
    if isinstance(module, nn.Linear):
        return linear_gram
    if isinstance(module, nn.Conv2d):
        return conv_gram if module.padding_mode == "zeros" and not isinstance(module.padding, str) else None
    if isinstance(module, (nn.GroupNorm, nn.Embedding)):
        plain = isinstance(module, nn.GroupNorm) or (module.max_norm is None and not module.scale_grad_by_freq)
        return (norm_gram if isinstance(module, nn.GroupNorm) else embedding_gram) if plain else None
    one_axis = getattr(getattr(module, "weight", None), "dim", lambda: 0)() == 1
    if one_axis and (isinstance(module, nn.LayerNorm) or type(module).__name__ == "RMSNorm"):
        return norm_gram
    return None


def _with_bias(module: Any, weight: Any, shift: Tensor) -> Grams:
    grams = {"weight": weight}
    if getattr(module, "bias", None) is not None:
        grams["bias"] = vector_gram(shift)
    return grams
