"""Parts of a pipeline that do not train lie in CPU memory, and come to the device while they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn


@contextmanager
def on_device(
    modules: Iterable[nn.Module], device: torch.device, *, dtype: torch.dtype | None = None
) -> Iterator[None]:
    """Move modules to a device inside a `with` block; afterwards each is where it was before, in the type it had.

    Args:
        modules: Those that lie on the device already stay there.
        device: Where they are needed.
        dtype: To compute in, wider than their own; a narrower one would round the weights for good. All weights of a
            module then have one type. None leaves their types alone.
    """
    with ExitStack() as back:
        for module in modules:
            tensor = next(module.parameters(), None)
            if tensor is None:
                continue
            if dtype is None:
                # Diffusers warns of a type as soon as one is named.
                back.callback(module.to, device=tensor.device)
                module.to(device=device)
            else:
                back.callback(module.to, device=tensor.device, dtype=tensor.dtype)
                module.to(device=device, dtype=dtype)
        yield
