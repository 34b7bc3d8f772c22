"""FSDP2 (`fully_shard`): what growth must know of parameters that are spread over the ranks. torch only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def is_sharded_tensor(tensor: Any) -> bool:
    """Whether every rank holds only a part of `tensor` (a DTensor)."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def is_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` has spread the model's parameters over the ranks."""
    return any(is_sharded_tensor(parameter) for parameter in model.parameters())


def reduces_gradients(model: nn.Module) -> bool:
    """Whether the backward pass that runs now reduces gradients over the ranks, or is a step of accumulation."""
    groups = [group for module in model.modules() for group in _groups(module)]
    return all(group.reduce_grads for group in groups)


@torch.no_grad()
def add_vector(parameter: Tensor, vector: Tensor) -> None:
    """Add a vector (D,), the same on every rank, to a parameter (D,) that may be sharded; in place."""
    vector = vector.to(parameter.device, parameter.dtype)
    if is_sharded_tensor(parameter):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = parameter.device_mesh, parameter.placements  # type: ignore[attr-defined]
        vector = distribute_tensor(vector, mesh, placements, src_data_rank=None)
    parameter.add_(vector)


def _groups(module: nn.Module) -> list[Any]:
    """The groups of parameters that FSDP2 gathers and reduces together at `module`."""
    get_state = getattr(module, "_get_fsdp_state", None)
    return list(getattr(get_state(), "_fsdp_param_groups", [])) if get_state is not None else []
