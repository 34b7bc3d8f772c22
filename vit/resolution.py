"""Letting a vision transformer take images of any size its patches divide, without adding anything to it.

The position embeddings of the full grid stay the parameter; the forward pass interpolates them (bicubic,
differentiable) where an image is smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from operator import attrgetter
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.growth.resize import stage_size

from .models import is_transformers, size_multiple
from .retokenize import resample_grid


def enable_dynamic_resolution(model: nn.Module) -> Callable[[], None]:
    """Make `model(images)` work at every multiple of `size_multiple(model)`.

    timm's ViT and DeiT switch to their own `dynamic_img_size`, models of transformers get
    `interpolate_pos_encoding=True` where the caller does not say, VOLO has its embeddings resampled for one call. At
    the full size the function of the model is unchanged.

    Args:
        model: The bare model.

    Returns:
        A function that undoes it.
    """
    undo = ExitStack()
    if is_transformers(model):
        asking = model.register_forward_pre_hook(_interpolate, with_kwargs=True)
        undo.callback(asking.remove)
    elif hasattr(model, "post_network"):
        before = model.register_forward_pre_hook(_resample)
        undo.callback(before.remove)
        # Also after a forward pass that failed: it must not leave resampled embeddings behind.
        after = model.register_forward_hook(_restore, always_call=True)
        undo.callback(after.remove)
    elif not getattr(model, "dynamic_img_size", True):
        embed: Any = model.patch_embed
        nhwc = type(embed.output_fmt)("NHWC")
        _set(undo, embed, flatten=False, output_fmt=nhwc, strict_img_size=False)
        _set(undo, model, dynamic_img_size=True)
    return undo.close


def _set(undo: ExitStack, module: nn.Module, **values: Any) -> None:
    """Set attributes, and let `undo` set them back."""
    for name, value in values.items():
        before = getattr(module, name)
        undo.callback(setattr, module, name, before)
        setattr(module, name, value)


def resize_images(images: Tensor, resolution: int, multiple: int) -> Tensor:
    """(N, C, H, W) images -> the same with a shorter side of `resolution` pixels, bilinear with antialiasing.

    Args:
        images: A batch, (N, C, H, W).
        resolution: The shorter side, in pixels.
        multiple: What both sides must be multiples of.

    Raises:
        ConfigError: The batch is not four-dimensional, smaller than the resolution, or a side is no multiple.
    """
    if images.dim() != 4:
        raise ConfigError(f"resize takes a batch of shape (N, C, H, W), not {tuple(images.shape)}.")
    size = (images.shape[2], images.shape[3])
    target = stage_size(size, resolution, multiple)
    if target == size:
        return images
    return F.interpolate(images, size=target, mode="bilinear", antialias=True)


def image_size(model: nn.Module) -> int | None:
    """Side in pixels of the (square) images a model was built for; None where it does not say."""
    size: Any = None
    if hasattr(model, "post_network"):
        side = model.pos_embed.shape[1]  # type: ignore[union-attr,index]
        return side * size_multiple(model)  # type: ignore[operator]
    for name in ("image_size", "config.image_size", "patch_embed.img_size"):
        try:
            size = attrgetter(name)(model)
        except AttributeError:
            continue
        if size:
            break
    if size is None or isinstance(size, int):
        return size
    return int(size[0])  # (height, width)


def _interpolate(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Ask transformers' model for interpolated position embeddings where the caller does not say."""
    return args, {"interpolate_pos_encoding": True, **kwargs}


def _resample(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Shadow VOLO's parameter by its resampled values: an attribute of the instance is found before a parameter."""
    embedding: Any = module._parameters["pos_embed"]
    side = size_multiple(module)
    height, width = args[0].shape[2:]
    target = (height // side, width // side)
    if target != embedding.shape[1:3]:
        module.__dict__["pos_embed"] = resample_grid(embedding, target)


def _restore(module: nn.Module, args: Any, output: Any) -> None:
    """Let VOLO's parameter be found again."""
    module.__dict__.pop("pos_embed", None)
