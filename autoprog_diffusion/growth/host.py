"""What the scheduler asks of its host, an Accelerate-like object, without importing Accelerate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .config import GrowthConfig
from .distributed import find_ddp, unwrap, world_size
from .errors import OrderError
from .sharding import is_sharded


SUPPORTED = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU", "MULTI_MLU", "MULTI_SDAA", "MULTI_MUSA")
INSTEAD = "use one process, DistributedDataParallel, or FSDP with fsdp_version: 2 (`accelerate config`)."
REFUSED = {
    "DEEPSPEED": "DeepSpeed's ZeRO stages fix their partitions of the optimizer when the engine is built: frozen "
    "parameters would go on being updated, and parameters opened later would never start",
    "MEGATRON_LM": "Megatron-LM owns the model's layers and its optimizer",
    "XLA": "XLA compiles the set of trainable parameters into the step",
}


def check_backend(accelerator: Any, config: GrowthConfig) -> None:
    """Refuse, at construction, a distributed backend that cannot do what the configuration asks.

    Raises:
        OrderError: The accelerator runs FSDP version 1, DeepSpeed, Megatron or XLA; or FSDP version 2 with a search or
            a stage embedding.
    """
    kind = backend(accelerator)
    if kind in SUPPORTED:
        return
    if kind != "FSDP":
        reason = REFUSED.get(kind, "its trainable parameters cannot change during training")
        raise OrderError(f"distributed_type={kind} cannot grow: {reason}; {INSTEAD}")
    version = getattr(accelerator.state.fsdp_plugin, "fsdp_version", 1)
    if version != 2:
        raise OrderError(
            f"fsdp_version={version} cannot grow: it flattens frozen and trainable parameters into one; {INSTEAD}"
        )
    if config.search != "none":
        raise OrderError(
            f"search={config.search!r} does not work on sharded parameters, whose per-sample gradients no rank holds: "
            "search in one process on a smaller run, save growth.plan, and pass plan=GrowthPlan.load(...) here."
        )
    if config.stage_embedding or config.stage_dropout:
        raise OrderError(
            "Accelerate's FSDP takes no optimizer with parameters outside of the model, such as the stage embedding: "
            "set stage_embedding=False and stage_dropout=0."
        )


def backend(accelerator: Any) -> str:
    """Accelerate's name of what distributes the run; NO without an accelerator."""
    return getattr(getattr(accelerator, "distributed_type", None), "value", "NO")


def check_bare(model: nn.Module) -> None:
    """Refuse a wrapped model at construction.

    Raises:
        OrderError: The model is wrapped by DDP, DataParallel, torch.compile or PEFT.
    """
    if any(cls.__name__ == "PeftModel" for cls in type(model).__mro__):
        raise OrderError(
            f"GrowthScheduler was given a {type(model).__name__} of PEFT: add the adapters to the Diffusers model "
            "itself, model.add_adapter(LoraConfig(...)), and construct GrowthScheduler with that model."
        )
    if unwrap(model) is not model:
        raise OrderError(
            f"GrowthScheduler was given a {type(model).__name__}: construct it with the bare model, before "
            "accelerator.prepare and torch.compile, and pass the wrapped one to growth.prepare(...)."
        )


def check_prepared(model: nn.Module, bare: nn.Module, accelerator: Any) -> DistributedDataParallel | None:
    """Check that `model` is the prepared form of `bare`, and return its DDP wrapper if there is one.

    Raises:
        OrderError: It is another model, or `accelerator.prepare` has not run on it.
    """
    if unwrap(model) is not bare:
        raise OrderError(
            f"prepare was given a {type(unwrap(model)).__name__} that is not the model this GrowthScheduler was "
            "constructed with: pass what accelerator.prepare returned for that model."
        )
    # Accelerate remembers a model as it was before the DDP wrapper.
    if accelerator is not None and not any(unwrap(known) is bare for known in accelerator._models):
        raise OrderError(
            "prepare was given a model that accelerator.prepare has not returned. Freezing before DDP wraps the model "
            "leaves the gradients of later stages unsynchronised: call accelerator.prepare(...) first, then "
            "growth.prepare(model, num_training_steps=...)."
        )
    ddp = find_ddp(model)
    if world_size() > 1 and ddp is None and not is_sharded(bare):
        raise OrderError(
            f"{world_size()} processes run, but the model is neither in DistributedDataParallel nor sharded by "
            "fully_shard: pass the model that accelerator.prepare (or DistributedDataParallel) returned."
        )
    return ddp


def check_same_parameters(model: nn.Module, known: Iterable[str]) -> None:
    """Check that the model has the parameters it had when its units were cut.

    Raises:
        OrderError: It has others, for example a LoRA adapter that was added in between.
    """
    changed = sorted({name for name, _ in model.named_parameters()} ^ set(known))
    if changed:
        raise OrderError(
            f"the model's parameters changed after GrowthScheduler was constructed, first {changed[:3]}: add adapters "
            "(model.add_adapter) and replace layers before constructing it."
        )


def check_optimizers(optimizers: Iterable[Any], named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Check that some optimizer holds every parameter that will train in some stage.

    Raises:
        OrderError: A parameter is in no optimizer; the message names the first ones.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    if not groups:
        return
    held = {id(parameter) for group in groups for parameter in group["params"]}
    missing = [name for name, parameter in named if id(parameter) not in held]
    if missing:
        raise OrderError(
            f"the optimizer lacks {len(missing)} parameters that will train, first {missing[:3]}: build it from "
            "growth.parameters() (the model's, then the stage embedding's), before accelerator.prepare."
        )


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile has wrapped the model or one of its submodules."""
    inner = unwrap(model)
    # A compiled wrapper lists the bare model under `_orig_mod`, whether it is outside or inside of DDP.
    wrapped = any(name.rpartition(".")[2] == "_orig_mod" for name, _ in model.named_modules())
    return wrapped or any(module._compiled_call_impl is not None for module in inner.modules())
