"""A training device without memory: its tensors have shapes and types, and PyTorch runs on them as on a CUDA device.

Tensors are PyTorch's fake tensors, on the device type that PyTorch leaves to others (PrivateUse1), named `planned`.
`rules.py` gives it what a CUDA device has: the same lists of operations that autocast runs in bfloat16 and in
float32, with the same cached copies of weights, and fused attention. Memory of the host stays apart from the device's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorConverter, FakeTensorMode
from torch.utils import backend_registration

from .rules import copies_end_with_autocast, register


NAME = "planned"


class Backend:
    """What PyTorch asks `torch.planned` for."""

    _initialized = False

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def device(self, index: int) -> Any:
        return nullcontext()

    def manual_seed_all(self, seed: int) -> None:
        """Nothing is drawn: tensors have no values."""

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.uint8, device="cpu")

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        """There is none."""

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class Converter(FakeTensorConverter):
    """Keeps no weak references to new fake tensors: `Module.to`, which PEFT calls, does not move what has some."""

    def set_tensor_memo(self, t: torch.Tensor, v: Any) -> None:
        pass


class NoValues(FakeTensorMode):
    """Fake tensors of which code may ask a value: a number is one, an answer is no, and what is compared is close."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)  # constants of a module's may have been made before
        self.fake_tensor_converter = Converter(copy_data=False)

    @property
    def avoid_device_init(self) -> bool:
        """Whether a list of numbers becomes a fake tensor before it goes to its device."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            if dtype == torch.bool:
                return False
            return 1.0 if dtype.is_floating_point else 1
        if func is torch.ops.aten.allclose.default:
            return True
        return super().__torch_dispatch__(func, types, args, kwargs)


@cache
def planned_device() -> torch.device:
    """The device, which is registered with this process when it is first asked for."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
    register()
    return torch.device(NAME)


@contextmanager
def without_memory() -> Iterator[torch.device]:
    """The planned device; inside, no new tensor of any device holds memory."""
    device = planned_device()
    with NoValues(), copies_end_with_autocast():
        yield device
