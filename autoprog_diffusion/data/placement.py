"""Parts of a pipeline that do not train lie in CPU memory, and come to the device while they are needed."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


# Type -> the method that casts to it: Diffusers warns where `to` is told of a type.
_CASTS = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat16"}
# Modules whose weights are held in less than float32, in which they compute.
_NARROW: weakref.WeakSet[nn.Module] = weakref.WeakSet()
# Modules in float32 -> the type that their weights were stored in.
_STORED: weakref.WeakKeyDictionary[nn.Module, torch.dtype] = weakref.WeakKeyDictionary()


def cast_exactly(module: nn.Module, dtype: torch.dtype) -> bool:
    """Cast a module to the type that its weights were stored in, or to float32 where that would change one of them.

    Args:
        module: One that does not train.
        dtype: The type that its files say.

    Returns:
        Whether it has that type now.
    """
    # Buffers are computed, not stored: rounding them would change them.
    exact = not any(buffer.is_floating_point() for buffer in module.buffers())
    # A part may have been loaded from other files than those that were looked at.
    exact = exact and all(_fits(parameter, dtype) for parameter in module.parameters())
    _cast(module, dtype if exact else torch.float32)
    return exact


def hold_narrow(module: nn.Module, dtype: torch.dtype) -> None:
    """Hold a module's weights in the type that they were stored in; inside of `on_device` they are float32.

    That is exact, and takes half the memory while the module is not needed.

    Args:
        module: One that does not train.
        dtype: The type that its files say.
    """
    if cast_exactly(module, dtype) and dtype != torch.float32:
        _NARROW.add(module)


def remember_type(module: nn.Module, dtype: torch.dtype) -> None:
    """Remember the type that a module's weights were stored in, for `hold_as_stored`."""
    _STORED[module] = dtype


def hold_as_stored(modules: Iterable[object]) -> None:
    """Hold the modules whose stored type is remembered in that type, as `hold_narrow` does.

    A pipeline is loaded in float32, so that any script may compute with it. A recipe computes inside of `on_device`
    only, and calls this.

    Args:
        modules: Parts of a pipeline, modules or not; none of them trains.
    """
    for module in modules:
        if isinstance(module, nn.Module) and module in _STORED:
            hold_narrow(module, _STORED[module])


def is_narrow(module: nn.Module) -> bool:
    """Whether a module is held in less than it computes in."""
    return module in _NARROW


def keep_on_device(module: nn.Module, device: torch.device) -> None:
    """Move a module to a device for good, in the type that it computes in."""
    module.to(device=device)
    if module in _NARROW:
        _NARROW.discard(module)
        module.float()


@contextmanager
def on_device(
    modules: Iterable[nn.Module], device: torch.device, *, dtype: torch.dtype | None = None
) -> Iterator[None]:
    """Move modules to a device inside a `with` block; afterwards each is where it was before, in the type it had.

    Args:
        modules: Those that lie on the device already stay there.
        device: Where they are needed.
        dtype: To compute in, wider than their own; a narrower one would round the weights for good. Modules
            whose first weight has this type keep it. None leaves all types alone, but those of `hold_narrow`.
    """
    with ExitStack() as back:
        for module in modules:
            tensor = next(module.parameters(), None)
            if tensor is None:
                continue
            wanted = torch.float32 if is_narrow(module) else tensor.dtype
            back.callback(_place, module, tensor.device, tensor.dtype)
            _place(module, device, dtype or wanted)
        yield


def _place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a module, narrow on its way, and cast it where its first weight has another type."""
    tensor = next(module.parameters())
    narrower = dtype.itemsize < tensor.dtype.itemsize
    if narrower:
        _cast(module, dtype)
    module.to(device=device)
    if not narrower and tensor.dtype != dtype:
        _cast(module, dtype)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    getattr(module, _CASTS[dtype])()


def _fits(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor holds numbers of a type only."""
    return tensor.dtype == dtype or torch.equal(tensor.to(dtype).to(tensor.dtype), tensor)
