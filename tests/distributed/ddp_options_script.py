"""Growth under the settings a user may give DistributedDataParallel; started by `test_ddp_options.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs
from rank_tools import BY_ID, finish, optimizer_of, refusal, same, seeds, sent, unequal_on_ranks, weights_of, worst
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, post_localSGD_hook
from torch.nn.parallel import DistributedDataParallel

from autoprog_diffusion import GrowthConfig, GrowthScheduler


UNET, PRIOR = BY_ID["unet2d"], BY_ID["prior"]
STEPS = 6


def config(**settings: Any) -> GrowthConfig:
    return GrowthConfig(num_stages=3, order="suffix", direction="unfreeze", stage_embedding_init="normal", **settings)


def train(
    accumulation: int = 1,
    family: Any = UNET,
    dress: Callable[[DistributedDataParallel], Any] | None = None,
    to_none: bool = True,
    **settings: Any,
) -> dict[str, Tensor]:
    """A run under DDP with the given settings; `dress` gets the wrapper before growth does."""
    model = family.build().train()
    growth = GrowthScheduler(model, config())
    wrapped = DistributedDataParallel(model, **settings)
    if dress is not None:
        dress(wrapped)
    optimizer = optimizer_of(growth)
    growth.prepare(wrapped, num_training_steps=STEPS, optimizer=optimizer)
    for step in range(STEPS):
        for part in range(accumulation):
            last = part == accumulation - 1
            with contextlib.nullcontext() if last else wrapped.no_sync():
                (family.loss(wrapped, seeds(step, part)[dist.get_rank()]) / accumulation).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
        growth.step()
    growth.fold(model)
    return weights_of(model, growth)


def options() -> dict[str, bool]:
    """Whether a run with an option equals the run without, bit for bit."""
    plain, accumulated = train(), train(accumulation=2)

    def plain_hook(wrapped: DistributedDataParallel) -> None:
        wrapped.register_comm_hook(None, default_hooks.allreduce_hook)

    return {
        "accumulation": not same(plain, accumulated),
        "static_graph": same(plain, train(static_graph=True)),
        "static_graph, views": same(plain, train(static_graph=True, gradient_as_bucket_view=True)),
        "views": same(accumulated, train(2, gradient_as_bucket_view=True)),
        "views, zeroed": same(accumulated, train(2, gradient_as_bucket_view=True, to_none=False)),
        "zeroed": same(accumulated, train(2, to_none=False)),
        "find_unused_parameters": same(accumulated, train(2, find_unused_parameters=True)),
        "small buckets": same(accumulated, train(2, bucket_cap_mb=0.01)),
        "all-reduce hook": same(accumulated, train(2, dress=plain_hook)),
    }


def half_precision() -> dict[str, float]:
    """Deviations that the half-precision hooks cause, in Python and built in."""
    plain = train()
    python = train(dress=lambda w: w.register_comm_hook(None, default_hooks.fp16_compress_hook))
    kind = dist.BuiltinCommHookType.FP16_COMPRESS
    builtin = train(dress=lambda w: w._register_builtin_comm_hook(kind))
    return {"python": worst(python, plain), "builtin": worst(builtin, plain)}


def power_sgd() -> dict[str, Any]:
    """PowerSGD as Accelerate sets it up: when it compresses, and whether the ranks stay equal."""
    option = {"start_powerSGD_iter": 2}
    kwargs = DistributedDataParallelKwargs(comm_hook=DDPCommunicationHookType.POWER_SGD, comm_state_option=option)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[kwargs])
    model = UNET.build().train()
    growth = GrowthScheduler(model, config(), accelerator)
    wrapped, optimizer = accelerator.prepare(model, optimizer_of(growth))
    growth.prepare(wrapped, num_training_steps=12)
    state, seen = wrapped._comm_hooks[0][1], {"compresses": [], "equal": [], "stages": []}
    for step in range(12):
        seen["stages"].append(growth.stage)
        accelerator.backward(UNET.loss(wrapped, seeds(step, 0)[accelerator.process_index]))
        seen["compresses"].append(bool(state.p_memory_dict))
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
        seen["equal"].append(not unequal_on_ranks(weights_of(model, growth).items()))
    growth.fold(wrapped)
    return seen


class Memory:
    """The state of a communication hook that remembers a bucket."""

    def __init__(self) -> None:
        self.buckets = {0: torch.zeros(3)}


def refused() -> dict[str, str]:
    """What cannot be carried over, and what growth says about it."""
    local_sgd = post_localSGD_hook.PostLocalSGDState(None, None, 1)
    mixed = torch.nn.parallel.distributed._MixedPrecision(param_dtype=torch.bfloat16)
    hook = default_hooks.allreduce_hook

    def static_graph() -> None:
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        accelerator.ddp_handler = DistributedDataParallelKwargs(static_graph=True)
        growth = GrowthScheduler(model := UNET.build(), config(), accelerator)
        wrapped, _ = accelerator.prepare(model, optimizer_of(growth))
        growth.prepare(wrapped, num_training_steps=STEPS)

    return {
        "memory": refusal(lambda: train(dress=lambda w: w.register_comm_hook(Memory(), hook))),
        "local SGD": refusal(lambda: train(dress=lambda w: w.register_comm_hook(local_sgd, hook))),
        "mixed precision": refusal(lambda: train(mixed_precision=mixed)),
        "static graph": refusal(static_graph),
        "static graph in torch": refusal(lambda: without_growth(static_graph=True)),
        "unused": refusal(lambda: train(family=PRIOR)),
        "unused, found": refusal(lambda: train(family=PRIOR, find_unused_parameters=True)),
    }


def without_growth(**settings: Any) -> None:
    """Accumulation in a plain DDP loop, which growth has no part in."""
    wrapped = DistributedDataParallel(UNET.build().train(), **settings)
    with wrapped.no_sync():
        UNET.loss(wrapped, 0).backward()
    UNET.loss(wrapped, 1).backward()


def traffic(family: Any, **settings: Any) -> list[dict[str, Any]]:
    """What a step with accumulation reduces in every stage, and what trains in it; counts of float32 values."""
    model = family.build().train()
    growth = GrowthScheduler(model, config())
    wrapped = DistributedDataParallel(model, **settings)
    growth.prepare(wrapped, num_training_steps=3)
    rows = []
    for step in range(3):

        def backward(step: int = step) -> None:
            with wrapped.no_sync():
                family.loss(wrapped, step).backward()
            family.loss(wrapped, step).backward()

        reduced = sent(backward)
        trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
        tensors = sum(p.requires_grad for p in model.parameters())
        rows.append({"sent": reduced, "trains": trains, "tensors": tensors})
        model.zero_grad()
        growth.step()
    table = growth.stage_embedding.table.numel()
    total = sum(p.numel() for p in model.parameters())
    return [{**row, "table": table, "total": total} for row in rows]


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result: dict[str, Any] = {"options": options(), "half": half_precision(), "power_sgd": power_sgd()}
    result["traffic"] = {family.id: traffic(family) for family in (UNET, BY_ID["dit"])}
    result["traffic, found"] = traffic(UNET, find_unused_parameters=True)
    result["refused"] = refused()
    finish(result)


if __name__ == "__main__":
    main()
