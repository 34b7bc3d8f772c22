"""FSDP2 (`fully_shard`): parameters that are sharded over the ranks. Imports torch only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StateError
from ..plan import GrowthPlan
from ..state import State
from ..units import Layout, trainable_names


def is_sharded_tensor(tensor: Any) -> bool:
    """Whether every rank holds only a part of `tensor` (a DTensor)."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: all of it, unless it is sharded."""
    return tensor.to_local() if is_sharded_tensor(tensor) else tensor  # type: ignore[operator]


def like(parameter: Any, local: Tensor) -> Tensor:
    """A tensor that is cut as a parameter is, of which this process holds `local`."""
    if not is_sharded_tensor(parameter):
        return local
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def part_of(whole: Tensor, parameter: Any) -> Tensor:
    """This rank's part of a tensor that all ranks hold whole, cut as a parameter is; nothing is communicated."""
    if not is_sharded_tensor(parameter):
        return whole
    from torch.distributed.tensor import distribute_tensor

    # No source rank: every rank cuts its own.
    cut = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return local_part(cut)


def gathered(parameter: Any, local: Tensor) -> Tensor:
    """The whole of a tensor that is cut as a parameter is; all ranks must call it.

    Args:
        parameter: Of the model.
        local: What this rank holds of the tensor, on any device.
    """
    tensor: Any = like(parameter, local)
    return tensor.full_tensor() if is_sharded_tensor(tensor) else tensor


def shards_with_replicas(named: Iterable[tuple[str, Any]]) -> dict[str, Tensor]:
    """This rank's parts of those tensors that other ranks hold as well (HSDP: shards in a node, replicas across)."""
    return {
        name: local_part(tensor)
        for name, tensor in named
        if is_sharded_tensor(tensor) and any(placement.is_replicate() for placement in tensor.placements)
    }


def place_in_mesh(tensor: Any) -> tuple[int, ...]:
    """Which part of a sharded tensor this rank holds: its coordinates along the dimensions that shard."""
    coordinates = zip(tensor.device_mesh.get_coordinate(), tensor.placements)
    return tuple(index for index, placement in coordinates if not placement.is_replicate())


def is_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` has spread the model's parameters over the ranks."""
    return bool(_groups(model)) or any(is_sharded_tensor(parameter) for parameter in model.parameters())


def reduces_gradients(model: nn.Module) -> bool:
    """Whether the backward pass that runs now reduces gradients over the ranks, or is a step of accumulation."""
    return all(group.reduce_grads for group in _groups(model))


def reshard(model: nn.Module) -> None:
    """Give back parameters that a forward pass without a backward pass has left gathered.

    The root's are, after sampling or validation: what is then changed in `model.named_parameters()` would be lost.
    """
    for module in _fsdp_modules(model):
        module.reshard()


def follow_trainable(model: nn.Module) -> None:
    """Tell FSDP2 that other parameters train now.

    It decides in the first forward pass in which type a group's gradients are reduced and kept, from the parameters
    that train then: for a group that is frozen as a whole it would never do so.
    """
    for group in _groups(model):
        group._init_mp_dtypes()


@torch.no_grad()
def add_vector(parameter: Tensor, vector: Tensor) -> None:
    """Add a vector (D,), the same on every rank, to a parameter (D,) that may be sharded; in place."""
    vector = vector.to(parameter.device, parameter.dtype)
    if is_sharded_tensor(parameter):
        from torch.distributed.tensor import distribute_tensor

        vector = distribute_tensor(vector, parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
    parameter.add_(vector)


def trained_before(state: State, layout: Layout) -> set[str]:
    """Names of the parameters that the last optimizer step before a saved growth state trained.

    At a stage boundary these are the ones of the stage before that still train: what has just opened has no optimizer
    state yet, what has just frozen none any more.
    """
    plan = GrowthPlan.from_dict(state["plan"])
    step = state["step"]
    before = plan.stages[plan.stage_at(max(0, step - 1))]
    now = plan.stages[plan.stage_at(step)]
    return trainable_names(layout, set(before.blocks).intersection(now.blocks))


def check_optimizer_state(
    optimizers: Iterable[Any], named: Iterable[tuple[str, nn.Parameter]], layout: Layout, trained: set[str]
) -> None:
    """Check that the optimizers hold state for all that was trained, or for nothing yet.

    torch's distributed checkpoints load no optimizer state of a parameter that is frozen while they load.

    Raises:
        StateError: The state of some blocks was dropped.
    """
    held = {parameter for optimizer in optimizers for parameter in optimizer.state}
    present = {name for name, parameter in named if parameter in held}
    lost = []
    for unit in layout.units:
        expected = trained.intersection(unit.parameters)
        if expected and expected.isdisjoint(present):
            lost.append(unit.name)
    if present and lost:
        raise StateError(
            f"the optimizer's state of {len(lost)} blocks was not loaded, first {lost[:3]}, because they were frozen "
            "meanwhile: load model and optimizer inside `with growth.loading(state):`, then "
            "growth.load_state_dict(state)."
        )


def _groups(model: nn.Module) -> list[Any]:
    """The groups of parameters that FSDP2 gathers and reduces together, of all submodules."""
    found = []
    for module in _fsdp_modules(model):
        state = module._get_fsdp_state()
        # Until torch 2.12 a module had one group.
        found += getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]
    # A module without parameters of its own has none.
    return [group for group in found if group is not None]


def _fsdp_modules(model: nn.Module) -> list[Any]:
    """The submodules that `fully_shard` was called with."""
    return [module for module in model.modules() if hasattr(module, "_get_fsdp_state")]
