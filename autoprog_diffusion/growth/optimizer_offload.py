"""Optimizer state in CPU memory: it comes to the device piece by piece, while a step needs it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .backends.fsdp2 import is_sharded_tensor
from .backward_step import only
from .bare import bare
from .errors import OrderError
from .memory import tensor_bytes


# Bytes of the parameters whose state is on the device at a time.
PIECE = 2**28
# Devices that copy from and to pinned memory while they compute.
PINNED = ("cuda", "xpu")
# Devices whose tensors stay: they lie in CPU memory, or hold no numbers.
STAYING = ("cpu", "meta")


def offload_optimizer(optimizer: Any, *, piece: int = PIECE) -> None:
    """Let the state of an optimizer lie in CPU memory between its steps.

    A step moves some of the parameters after the others, and only their state is on the device meanwhile: those of one
    unit or less inside of a backward pass (`growth.step_in_backward`), pieces of all in an ordinary loop. The weights
    are the same, bit for bit. State of parameters that are on the CPU stays where it is.

    Args:
        optimizer: As it was built, not yet prepared by Accelerate, and without a learning-rate scheduler. Its step for
            one parameter must not depend on another.
        piece: Bytes of the parameters that step together.

    Raises:
        OrderError: It has a scheduler, is wrapped or offloaded already, or its parameters are sharded (FSDP2 may shard
            them later: then its first step raises).

    Example:
        >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
        >>> offload_optimizer(optimizer)
        >>> is_offloaded(optimizer)
        True
    """
    if bare(optimizer) is not optimizer or "step" in vars(optimizer):
        raise OrderError(
            "offload_optimizer was called after accelerator.prepare or after a learning-rate scheduler was built, "
            "which call the step that the optimizer had: call it as soon as the optimizer is built."
        )
    if is_offloaded(optimizer):
        raise OrderError("offload_optimizer was called already for this optimizer: remove one of the calls.")
    _check_whole(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    optimizer.__class__ = _offloaded(type(optimizer), piece)
    # torch puts loaded state on the device of its parameter.
    optimizer.register_load_state_dict_post_hook(_park_all)


def is_offloaded(optimizer: Any) -> bool:
    """Whether the state of an optimizer, bare or wrapped by Accelerate, lies in CPU memory between its steps."""
    return hasattr(bare(optimizer), "moved_bytes")


def unhooked_step(kind: type[Any]) -> Any:
    """The step of a class of optimizers as it was written, without what torch calls around it."""
    # torch counts and announces steps of every class; a class that is derived from it would do it a second time.
    return getattr(kind.step, "__wrapped__", kind.step) if hasattr(kind.step, "hooked") else kind.step


def beside(values: Mapping[str, Any], parameter: nn.Parameter, group: Mapping[str, Any]) -> dict[str, Any]:
    """State on its parameter's device, but for the number of steps, which torch leaves on the CPU unless it is fused.

    The types stay what they were, which `load_state_dict` of an optimizer would change to the parameter's.

    Args:
        values: The state by its name.
        parameter: The parameter.
        group: The optimizer's group that holds it.
    """
    counts_there = bool(group.get("capturable") or group.get("fused"))
    moved = {}
    for key, value in values.items():
        stays = not isinstance(value, Tensor) or (key == "step" and not counts_there)
        moved[key] = value if stays else value.to(parameter.device, non_blocking=True)
    return moved


def _offloaded(kind: type[torch.optim.Optimizer], piece: int) -> type[Any]:
    """A class of optimizers whose state comes and goes."""
    step_of_kind = unhooked_step(kind)

    class Offloaded(kind):
        """An optimizer; `moved_bytes` is the most of its state that was on the device at a time."""

        moved_bytes = 0

        def step(self, closure: Any = None) -> Any:
            if closure is not None:
                raise TypeError("step takes no closure: call loss.backward() before it.")
            devices = set()
            for parts in list(_pieces(self.param_groups, piece)):
                _check_whole(chain.from_iterable(parts.values()))
                with only(self, parts):
                    _fetch(self)
                    step_of_kind(self)
                    self.moved_bytes = max(self.moved_bytes, _park(self))
                devices.update(parameter.device for own in parts.values() for parameter in own)
            for device in devices:
                # A checkpoint may read what is still on its way.
                if device.type in PINNED and torch.accelerator.is_available():
                    torch.accelerator.current_stream(device).synchronize()

    Offloaded.__name__ = kind.__name__
    hooked: Any = torch.optim.Optimizer.profile_hook_step(Offloaded.step)
    hooked.hooked = True
    Offloaded.step = hooked
    return Offloaded


def _pieces(groups: Iterable[Mapping[str, Any]], most: int) -> Iterator[dict[int, list[nn.Parameter]]]:
    """What steps together: place of a group -> those of its parameters that have a gradient."""
    parts: dict[int, list[nn.Parameter]] = {}
    size = 0
    for place, group in enumerate(groups):
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            parts.setdefault(place, []).append(parameter)
            size += tensor_bytes(parameter)
            if size >= most:
                yield parts
                parts = {}
                size = 0
    if parts:
        yield parts


def _fetch(optimizer: torch.optim.Optimizer) -> None:
    """Bring the state of an optimizer's parameters to their devices."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter in optimizer.state:
                optimizer.state[parameter].update(beside(optimizer.state[parameter], parameter, group))


def _park(optimizer: torch.optim.Optimizer) -> int:
    """Put the state of an optimizer's parameters into CPU memory; returns the bytes that were elsewhere."""
    moved = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            values = optimizer.state.get(parameter, {})
            for key, value in values.items():
                if isinstance(value, Tensor) and value.device.type not in STAYING:
                    moved += tensor_bytes(value)
                    values[key] = _at_home(value)
    return moved


def _park_all(optimizer: torch.optim.Optimizer) -> None:
    """Hook after a state was loaded."""
    _park(optimizer)


def _at_home(value: Tensor) -> Tensor:
    """A tensor in CPU memory; a plain one in pinned memory, on its way."""
    if type(value) is not Tensor or value.device.type not in PINNED:
        return value.to("cpu")
    home = torch.empty_like(value, device="cpu", pin_memory=True)
    return home.copy_(value, non_blocking=True)


def _check_whole(parameters: Iterable[nn.Parameter]) -> None:
    """Refuse, with `OrderError`, parameters of which every rank holds a part."""
    if any(map(is_sharded_tensor, parameters)):
        raise OrderError(
            "offload_optimizer does not work on sharded parameters (FSDP2), of whose state every rank holds its part "
            "only: do without."
        )
