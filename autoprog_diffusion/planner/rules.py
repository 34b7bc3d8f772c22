"""The rules of a CUDA device for PyTorch's free one: types under autocast, copies of weights, fused attention.

Autocast on a CUDA device runs some operations in bfloat16, some in float32, and some in the widest type of their
inputs. Copies that it casts of weights which train are kept until its `with` block ends. The lists are PyTorch's own
(ATen/autocast_mode.h), and so is what its fused attention does with masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


DEVICE_TYPE = "privateuseone"
KEY = "AutocastPrivateUse1"
LOWER = """
_convolution _convolution.deprecated conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d.input
conv_transpose3d.input convolution prelu addmm addmv addr matmul einsum mm mv linalg_vecdot linear addbmm baddbmm bmm
chain_matmul linalg_multi_dot _scaled_dot_product_flash_attention scaled_dot_product_attention
""".split()
FLOAT32 = """
acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar pow.Tensor_Tensor
pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm frobenius_norm.dim nuclear_norm nuclear_norm.dim
cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss
smooth_l1_loss huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss triplet_margin_loss
multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp upsample_nearest1d
_upsample_nearest_exact1d upsample_nearest2d _upsample_nearest_exact2d upsample_nearest3d _upsample_nearest_exact3d
upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d
_upsample_bicubic2d_aa
""".split()
# Those give float32 from narrower inputs unless they are told a type.
FLOAT32_RESULT = """
prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm
linalg_matrix_norm.str_ord sum sum.dim_IntList
""".split()
WIDEST = """
addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add
""".split()
ALIGNED = 16  # masks of fused attention have rows of a multiple of so many numbers

# Weight -> its copy in the type of autocast.
_copies: dict[Tensor, Tensor] = {}


@cache
def register() -> list[torch.library.Library]:
    """Teach this process the rules; what it returns holds them."""
    rules = torch.library.Library("aten", "IMPL")
    everywhere = torch.library.Library("_", "IMPL")
    everywhere.fallback(torch.library.fallthrough_kernel, KEY)
    policies = ((LOWER, _in_lower), (FLOAT32, _in_float32), (FLOAT32_RESULT, _to_float32), (WIDEST, _in_widest))
    for names, policy in policies:
        for name in names:
            rules.impl(name, _ruled(_operation(name), policy), KEY)
    rules.impl("scaled_dot_product_attention", _fused_attention, "AutogradPrivateUse1")
    return [everywhere, rules]


@contextmanager
def copies_end_with_autocast() -> Iterator[None]:
    """Inside a `with` block, copies of weights end where PyTorch's own do: when the outermost autocast ends."""
    clear = torch.clear_autocast_cache

    def clear_both() -> None:
        _copies.clear()
        clear()

    torch.clear_autocast_cache = clear_both
    try:
        yield
    finally:
        _copies.clear()
        torch.clear_autocast_cache = clear


def _operation(name: str) -> Any:
    """The overload that a name of the lists means."""
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _ruled(operation: Any, policy: Callable[..., tuple[Any, Any]]) -> Callable[..., Any]:
    """An operation whose inputs a policy casts."""
    without_autocast = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, KEY))

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(without_autocast):
            args, kwargs = policy(operation, args, kwargs)
            return operation(*args, **kwargs)

    return run


def _in_lower(_: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    dtype = torch.get_autocast_dtype(DEVICE_TYPE)
    return tree_map(lambda value: _cast(value, dtype), (args, kwargs))


def _in_float32(_: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return tree_map(lambda value: _cast(value, torch.float32), (args, kwargs))


def _to_float32(operation: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    if _eligible(args[0]) and kwargs.get("dtype") is None:
        arguments = operation._schema.arguments
        place = next(index for index, argument in enumerate(arguments) if argument.name == "dtype")
        if place >= len(args):
            kwargs = {**kwargs, "dtype": torch.float32}
        elif args[place] is None:
            args = (*args[:place], torch.float32, *args[place + 1 :])
    return args, kwargs


def _in_widest(_: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    dtype = torch.get_autocast_dtype(DEVICE_TYPE)
    if any(_eligible(value) and value.dtype == torch.float32 for value in tree_leaves((args, kwargs))):
        dtype = torch.float32
    return tree_map(lambda value: _cast(value, dtype), (args, kwargs))


def _eligible(value: Any) -> bool:
    """Whether autocast changes the type of a value: tensors of the device that are no doubles or whole numbers."""
    return (
        isinstance(value, Tensor)
        and value.device.type == torch._C._get_privateuse1_backend_name()
        and value.is_floating_point()
        and value.dtype != torch.float64
    )


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """A value in a type, if autocast changes its type at all."""
    if not _eligible(value) or value.dtype == dtype:
        return value
    kept = (
        dtype == torch.get_autocast_dtype(DEVICE_TYPE)
        and value.dtype == torch.float32
        and value.requires_grad
        and value.is_leaf
        and not value._is_view()
        and torch.is_autocast_cache_enabled()
    )
    if not kept:
        return value.to(dtype)
    if value not in _copies:
        _copies[value] = value.to(dtype)
    return _copies[value]


def _fused_attention(  # noqa: PLR0917 - of the operation
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """Memory-efficient attention, which saves what flash attention does, and takes masks as well.

    Args:
        query: (N, H, L, E).
        key: (N, H, S, E).
        value: (N, H, S, E).
        attn_mask: (L, S), or with leading dimensions; added to the scores, or False where there are none.
        dropout_p: Probability that a weight of the attention is dropped.
        is_causal: Whether a query sees only what precedes it.
        options: `scale`, or `enable_gqa`: keys and values of fewer heads are repeated.
    """
    if options.get("enable_gqa"):
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3)
    saves = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    result, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query,
        key,
        value,
        None if attn_mask is None else _aligned(attn_mask, query, key),
        saves,
        dropout_p,
        is_causal,
        scale=options.get("scale"),
    )
    return result


def _aligned(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A mask as a sum, in rows of aligned memory, (N, H, L, S)."""
    if mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, torch.full((), -torch.inf, dtype=query.dtype, device=query.device))
    extra = -mask.shape[-1] % ALIGNED
    if extra:
        mask = torch.nn.functional.pad(mask, (0, extra))[..., : mask.shape[-1]]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
