"""Several processes: unwrapping, equal ranks, averaged gradients. Imports torch only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel

from ..errors import SyncError


WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the size of an element, in bytes


def world_size() -> int:
    """Number of ranks; 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process; 0 where torch.distributed is not initialised."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_object(value: Any) -> list[Any]:
    """The `value` of every rank, in the order of ranks; it must be picklable."""
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def unwrap(model: nn.Module) -> nn.Module:
    """The bare module inside DistributedDataParallel, DataParallel and torch.compile wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, (DistributedDataParallel, nn.DataParallel)):
            inner = model.module
        if inner is None:
            return model
        model = inner


def find_ddp(model: nn.Module) -> DistributedDataParallel | None:
    """The DistributedDataParallel wrapper in a chain of wrappers, if there is one."""
    while model is not None and not isinstance(model, DistributedDataParallel):
        model = getattr(model, "_orig_mod", None)  # type: ignore[assignment]
    return model


def average_gradient(parameter: nn.Parameter, should_reduce: Callable[[], bool]) -> Any:
    """Average a parameter's gradient over ranks after each backward; for parameters that live outside DDP.

    Reducing inside the backward pass means that gradient clipping already sees the average, so that every rank clips
    alike. Under accumulation the local sums are averaged by the last, synchronising backward.

    Returns:
        A handle with `remove()`.
    """
    engine: Any = Variable._execution_engine

    def reduce() -> None:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(world_size())

    def reduce_last(tensor: Tensor) -> None:
        if world_size() > 1 and should_reduce():
            # At the end of the pass, and after DDP's own end, which may be queued later than this: a communication
            # hook's collectives may be issued at any time until then, and all ranks need the same order.
            engine.queue_callback(lambda: engine.queue_callback(reduce))

    return parameter.register_post_accumulate_grad_hook(reduce_last)


def checksums(tensors: Iterable[Tensor]) -> Tensor:
    """One 64-bit integer per tensor from its bits: the sum of its words; equal bits give equal sums.

    Returns:
        Shape (number of tensors,), int64, on the CPU.
    """
    sums = []
    for tensor in tensors:
        flat = tensor.detach().contiguous().view(-1)
        sums.append(flat.view(WORDS[flat.element_size()]).sum(dtype=torch.int64))
    return torch.stack(sums).cpu()


def check_ranks_equal(named: Iterable[tuple[str, Tensor]], when: str, part: tuple[int, ...] = ()) -> None:
    """Compare tensors over ranks by checksum; one gather of 8 bytes a tensor.

    Args:
        named: What this rank holds.
        when: For the message.
        part: Which part of the tensors that is, where they are sharded: ranks with the same part are compared.

    Raises:
        SyncError: On every rank, where two ranks differ; the message names the first tensors that do.
    """
    if world_size() == 1:
        return
    tensors = dict(named)
    gathered: dict[tuple[int, ...], list[list[int]]] = {}
    for place, sums in gather_object((part, checksums(tensors.values()).tolist())):
        gathered.setdefault(place, []).append(sums)
    wrong = []
    for index, name in enumerate(tensors):
        if any(len({sums[index] for sums in alike}) > 1 for alike in gathered.values()):
            wrong.append(name)
    if wrong:
        raise SyncError(
            f"ranks differ {when} in {len(wrong)} of {len(tensors)} tensors, first {wrong[:5]}: a gradient was not "
            "synchronised. Pass the model returned by accelerator.prepare to your forward pass, and do not change "
            "requires_grad outside GrowthScheduler."
        )
