"""Rebuilding DistributedDataParallel's reducer for the parameters that train now. Imports torch only."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..adapter import class_names
from ..errors import OrderError


# The user's hooks and state on the wrapper itself, which `__init__` would reset.
_HOOK_DICTS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
_KEPT = ("training", "require_backward_grad_sync", "require_forward_param_sync")
# Arguments that the wrapper keeps under their own names; the last two are missing from older versions of torch.
_SETTINGS = (
    "device_ids",
    "output_device",
    "dim",
    "process_group",
    "find_unused_parameters",
    "gradient_as_bucket_view",
    "static_graph",
    "skip_all_reduce_unused_params",
    "batched_grad_copy",
)
MIB = 2**20


def rebuild_reducer(ddp: DistributedDataParallel) -> None:
    """Rebuild a DDP wrapper in place for the parameters that train now, keeping every reference to it.

    The reducer fixes its set of parameters when it is built: flipping `requires_grad` afterwards lets ranks drift
    apart silently. Rebuilding also means that gradients of frozen parameters are not communicated. The user's
    settings, hooks and communication hooks are kept.

    Raises:
        OrderError: The wrapper uses something that cannot be carried over; the message names it.
    """
    _check_can_rebuild(ddp)
    settings = _settings(ddp)
    hooks = list(ddp._comm_hooks)
    builtin = _builtin_hook(ddp)
    kept = {name: getattr(ddp, name) for name in (*_KEPT, *_HOOK_DICTS) if hasattr(ddp, name)}
    # Those of the old reducer, which torch does not remove.
    for handle in getattr(ddp, "_accum_grad_hooks", []):
        handle.remove()
    ddp.__init__(ddp.module, **settings)
    for name, value in kept.items():
        setattr(ddp, name, value)
    for hook, state in hooks:
        _forget_buckets(hook, state)
        ddp.register_comm_hook(state, hook)
    if builtin is not None:
        ddp._register_builtin_comm_hook(builtin)


def _settings(ddp: DistributedDataParallel) -> dict[str, Any]:
    """The arguments that the wrapper was built with, as this version of torch takes them."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    # torch 2.13 renamed the flag, and warns about the old name.
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    settings = {name: getattr(ddp, name) for name in (*_SETTINGS, buffers) if name in known and hasattr(ddp, name)}
    if not ddp.bucket_bytes_cap_default:
        settings["bucket_cap_mb"] = ddp.bucket_bytes_cap / MIB
    caps = getattr(ddp, "bucket_bytes_cap_list", None)
    if caps:
        settings["bucket_cap_mb_list"] = [cap / MIB for cap in caps]
    # Ranks were checked to be equal; a broadcast here would hide a drift instead of reporting it.
    settings["init_sync"] = False
    return settings


def _check_can_rebuild(ddp: DistributedDataParallel) -> None:
    """Raise `OrderError` where the wrapper uses what its constructor cannot take over."""
    reasons = {
        "delay_all_reduce_named_params": bool(ddp._delay_all_reduce_params),
        "mixed_precision (use autocast, accelerate's mixed_precision, instead)": ddp.mixed_precision is not None,
        "an optimizer that steps inside the backward pass": any(
            hasattr(parameter, "_in_backward_optimizers") for parameter in ddp.module.parameters()
        ),
    }
    wrong = [reason for reason, found in reasons.items() if found]
    if wrong:
        raise OrderError(f"DistributedDataParallel with {wrong[0]} cannot grow: build it without.")


def _builtin_hook(ddp: DistributedDataParallel) -> Any:
    """The built-in communication hook, if there is one: torch remembers only its name, in the logged data."""
    name = str(ddp._get_ddp_logging_data().get("comm_hook", ""))
    if ddp._comm_hooks or not name:
        return None
    return getattr(dist.BuiltinCommHookType, name.rpartition(".")[2])  # type: ignore[attr-defined]


def _forget_buckets(hook: Any, state: Any) -> None:
    """Make the state of a communication hook fit for buckets of other shapes.

    Raises:
        OrderError: It lets ranks differ between averages, or holds tensors that this library cannot reset.
    """
    classes = class_names(state)
    name = getattr(hook, "__name__", type(hook).__name__)
    if "PowerSGDState" in classes:
        for memory in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
            memory.clear()
        # DDP orders its buckets anew in its first two steps, so PowerSGD sits them out, as it does at the start.
        state.iter = min(state.iter, max(0, state.start_powerSGD_iter - 2))
    elif "PostLocalSGDState" in classes:
        raise OrderError(
            f"the communication hook {name} lets ranks differ between averages, and growth needs equal ranks: use "
            "plain all-reduce, fp16_compress_hook, bf16_compress_hook or powerSGD_hook."
        )
    elif _holds_tensors(state) or _has_tensors(state):
        raise OrderError(
            f"the state of the communication hook {name}, a {type(state).__name__}, holds tensors: growth changes the "
            "buckets they belong to. Use a hook without them, or powerSGD_hook, whose memory is reset at every stage."
        )


def _has_tensors(state: object) -> bool:
    """Whether an attribute of the state of a communication hook holds tensors."""
    # A module is not memory of the hook's own: it is what the hook works on.
    return not isinstance(state, nn.Module) and _holds_tensors(getattr(state, "__dict__", ()))


def _holds_tensors(value: Any) -> bool:
    """Whether there is a tensor in nested dictionaries, lists and tuples."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(map(_holds_tensors, value)))
