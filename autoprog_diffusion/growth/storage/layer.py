"""`StoredLayer`: one linear or convolution layer whose weight can be held small, and given back exactly."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..choices import FrozenDtype
from ..errors import OrderError
from ..memory import tensor_bytes
from .compute import LAYERS, FromPacked, apply
from .formats import dequantise, fits, quantise


SIZES = {"bfloat16": 2}  # bytes of a number in a format; of the others at most one


def can_be_stored(module: nn.Module, dtype: FrozenDtype) -> bool:
    """Whether a module is a layer of torch's own that runs as torch wrote it, with a weight that is not small yet."""
    if type(module) not in LAYERS:
        return False
    if "forward" in vars(module):
        # A library moves its weight to the device whenever it is needed.
        return False
    layer: Any = module
    pads_with_zeros = getattr(layer, "padding_mode", "zeros") == "zeros"
    pads_by_numbers = not isinstance(getattr(layer, "padding", 0), str)
    if not pads_with_zeros or not pads_by_numbers:
        return False
    weight = layer.weight
    large = weight.is_floating_point() and weight.element_size() > SIZES.get(dtype, 1)
    return large and fits(weight, dtype)


class StoredLayer:
    """A layer of a model, the parameter that is its weight, and that weight's exact value.

    While it is stored, a `bfloat16` weight is the parameter's own data. In place of a quantised one the parameter
    shows NaN, which take no memory, of the right shape, type and device, so that whoever reads it notices. The exact
    value is what `state_dict` and `load_state_dict` of the model, or of any module in it, deal with. It waits in CPU
    memory, unless it is bfloat16 already.

    Args:
        module: The layer.
        dtype: The format.
    """

    def __init__(self, module: nn.Module, dtype: FrozenDtype) -> None:
        self.module: Any = module
        self.stored = False
        self._dtype: FrozenDtype = dtype
        self._packed: Any = None
        # The exact value on the CPU; None where `_packed` is exact.
        self._exact: Tensor | None = None
        self._true_dtype: torch.dtype = self.module.weight.dtype
        self._device: torch.device = self.module.weight.device
        self._handles: list[RemovableHandle] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> StoredLayer:
        """A copy for the copy of the layer; nothing writes into a quantised weight, so both have the same one."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        for name, value in vars(self).items():
            shared = name == "_packed" and self._dtype != "bfloat16"
            setattr(twin, name, value if shared else copy.deepcopy(value, memo))
        return twin

    @property
    def weight(self) -> nn.Parameter:
        """The parameter."""
        return self.module.weight

    @property
    def trains(self) -> bool:
        """Whether the layer's weight or its bias requires gradient."""
        bias = self.module.bias
        return self.weight.requires_grad or (bias is not None and bias.requires_grad)

    @property
    def held(self) -> Tensor:
        """What takes the memory of the weight on its device now: the parameter, or the quantised tensor behind it."""
        return self._packed if self.stored else self.weight

    @property
    def bytes(self) -> int:
        """Bytes of the weight as it is held now, on its device."""
        return tensor_bytes(self.held)

    @property
    def whole_bytes(self) -> int:
        """Bytes of the weight in its own type."""
        return self.weight.numel() * self._true_dtype.itemsize

    def store(self) -> None:
        """Hold the weight small; without effect if it is."""
        if self.stored:
            return
        self._true_dtype = self.weight.dtype
        self._device = self.weight.device
        self._pack(self.weight.data)
        self.module.forward = self.forward
        # torch marks a hook by an attribute, which a method cannot have.
        self._handles = [
            self.module.register_state_dict_post_hook(partial(self._write_exact)),
            self.module.register_load_state_dict_pre_hook(partial(self._before_load)),
            self.module.register_load_state_dict_post_hook(partial(self._after_load)),
        ]
        self.stored = True

    def restore(self, device: torch.device | None = None) -> None:
        """Give the parameter its exact value back, on its own device or another one; without effect if it has it."""
        if not self.stored:
            return
        self.weight.data = self.exact().to(device or self._device)
        self._packed = None
        self._exact = None
        del self.module.forward
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.stored = False

    def exact(self) -> Tensor:
        """The exact value, of the weight's shape and own type, on the CPU if it is stored."""
        if not self.stored:
            return self.weight.data
        kept = self._packed if self._exact is None else self._exact
        return kept.to("cpu").to(self._true_dtype)

    def forward(self, input: Tensor) -> Tensor:
        """The layer's output; it takes what the layer's own `forward` takes.

        Raises:
            OrderError: The weight is stored in bfloat16, and the model trains without bfloat16 autocast.
        """
        x = input
        kind = x.device.type
        autocast = torch.is_autocast_enabled(kind)
        compute = torch.get_autocast_dtype(kind) if autocast else x.dtype
        if self._dtype != "bfloat16":
            x = x.to(compute)
            with torch.autocast(kind, enabled=False):
                return FromPacked.apply(x, self.module, self._unpack)  # type: ignore[return-value]
        if autocast and compute == torch.bfloat16:
            # Autocast would cast a float32 weight to the very same one.
            return type(self.module).forward(self.module, x)
        if self.module.training:
            raise OrderError(
                f'frozen_dtype="bfloat16" is exact under bfloat16 autocast only, and the model trains in {compute}: '
                'use Accelerator(mixed_precision="bf16") or torch.autocast(device, torch.bfloat16), or another '
                "frozen_dtype."
            )
        # A picture or a held-out loss in another type gets the exact weight, for this one call.
        x = x.to(compute)
        with torch.autocast(kind, enabled=False):
            return apply(self.module, x, self.exact().to(x.device, compute))

    def show_true_type(self) -> None:
        """Let the parameter have its own type, without memory and of NaN, until `hold`: for who asks for types.

        In place of a quantised weight it has it at all times.
        """
        if self.stored and self._dtype == "bfloat16":
            self.weight.data = _nothing(self.weight.shape, self._true_dtype, self._device)

    def hold(self) -> None:
        """Undo `show_true_type`."""
        if self.stored and self._dtype == "bfloat16":
            self.weight.data = self._packed

    def _pack(self, weight: Tensor) -> None:
        """Take the weight's value, and give the parameter the small one."""
        half = weight.to(self._device, torch.bfloat16)
        exact_in_half = _is_exact(half, weight)
        if self._dtype == "bfloat16":
            self._packed = half
            self._exact = None if exact_in_half else _park(weight)
            self.weight.data = half
            return
        self._packed = quantise(weight.to(self._device), self._dtype)
        self._exact = _park(half if exact_in_half else weight)
        self.weight.data = _nothing(weight.shape, self._true_dtype, self._device)

    def _unpack(self, dtype: torch.dtype) -> Tensor:
        """The quantised weight in a type to compute in."""
        return dequantise(self._packed, self.weight.shape, dtype)

    def _write_exact(self, module: nn.Module, state: dict[str, Any], prefix: str, *ignored: Any) -> None:
        """Let a state dictionary hold the exact value; a hook."""
        state[f"{prefix}weight"] = self.exact()

    def _before_load(self, module: nn.Module, *ignored: Any) -> None:
        """Let weights be loaded into the exact value, in CPU memory; a hook."""
        self.weight.data = self.exact()

    def _after_load(self, module: nn.Module, *ignored: Any) -> None:
        """Hold the loaded value small; a hook."""
        self._pack(self.weight.data)


def _is_exact(half: Tensor, weight: Tensor) -> bool:
    """Whether a bfloat16 copy holds all of a weight; a tensor without values counts as not exact."""
    if weight.is_meta or type(weight) is not Tensor:
        return False
    return torch.equal(half.to(weight.device, weight.dtype), weight)


def _park(weight: Tensor) -> Tensor:
    """A copy in CPU memory, pinned where it comes from a GPU, so that it travels fast."""
    copy = weight.detach().to("cpu", copy=True)
    return copy.pin_memory() if weight.is_cuda and type(copy) is Tensor else copy


def _nothing(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """NaN of any shape in the memory of one number."""
    return torch.full((), torch.nan, dtype=dtype, device=device).expand(shape)
