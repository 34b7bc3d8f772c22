"""Accelerate, PEFT and optimizers: checks at construction and preparation, registration for checkpoints.

Neither library is imported: an accelerator is known by its members, PEFT's wrapper by its name.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..adapter import class_names
from ..config import GrowthConfig
from ..errors import OrderError
from .fsdp2 import is_sharded
from .ranks import find_ddp, unwrap, world_size


logger = logging.getLogger(__name__)

# Those that run DistributedDataParallel.
SUPPORTED = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_NPU", "MULTI_XPU", "MULTI_MLU", "MULTI_SDAA", "MULTI_MUSA")
INSTEAD = "use one process, DistributedDataParallel, or FSDP with fsdp_version: 2 (`accelerate config`)."
REFUSED = {
    "MEGATRON_LM": "Megatron-LM owns the model's layers and its optimizer",
    "XLA": "XLA compiles the set of trainable parameters into the step",
}
# What was seen with DeepSpeed 0.19.8 on a model that was built trainable as a whole, and then frozen in part.
ZERO = {
    0: "it shards nothing, so DistributedDataParallel does the same",
    1: "its partitions of the optimizer are fixed when the engine is built, so frozen parameters go on being updated",
    2: "its partitions of gradients and optimizer are fixed when the engine is built, so frozen parameters go on "
    "being updated, and parameters opened later never start",
    3: "its partitions of parameters, gradients and optimizer are fixed when the engine is built, so frozen "
    "parameters go on being updated",
}


def check_backend(accelerator: Any, config: GrowthConfig, model: nn.Module) -> None:
    """Refuse, at construction, a distributed backend that cannot do what the configuration asks.

    Raises:
        OrderError: The accelerator runs FSDP version 1, DeepSpeed, Megatron or XLA; or FSDP version 2 with activation
            checkpointing or a stage embedding; or parameters are sharded, and there is a search.
    """
    kind = backend(accelerator)
    if kind == "FSDP" or is_sharded(model):
        _check_searchable(config.search)
    if kind in SUPPORTED:
        return
    if kind == "DEEPSPEED":
        plugin = getattr(getattr(accelerator, "state", None), "deepspeed_plugin", None)
        stage = int(getattr(plugin, "zero_stage", 2))  # 2 is Accelerate's default
        raise OrderError(f"distributed_type={kind} with ZeRO stage {stage} cannot grow: {ZERO[stage]}; {INSTEAD}")
    if kind != "FSDP":
        reason = REFUSED.get(kind, "nobody has tried whether its trainable parameters can change during training")
        raise OrderError(f"distributed_type={kind} cannot grow: {reason}; {INSTEAD}")
    _check_fsdp(accelerator.state.fsdp_plugin, config)


def _check_fsdp(plugin: Any, config: GrowthConfig) -> None:
    """Refuse, with `OrderError`, settings of FSDP that growth does not work with."""
    version = getattr(plugin, "fsdp_version", 1)
    if version != 2:
        raise OrderError(
            f"fsdp_version={version} cannot grow: it flattens frozen and trainable parameters into one; {INSTEAD}"
        )
    if getattr(plugin, "activation_checkpointing", False):
        raise OrderError(
            "fsdp_activation_checkpointing=True renames the blocks' parameters: set it to False, and call "
            "model.enable_gradient_checkpointing() instead."
        )
    if config.stage_embedding or config.stage_dropout:
        raise OrderError(
            "Accelerate's FSDP takes no optimizer with parameters outside of the model, such as the stage embedding: "
            "set stage_embedding=False and stage_dropout=0."
        )
    if config.stage_embedding is None:
        logger.info("no stage embedding: Accelerate's FSDP takes no optimizer with parameters outside of the model.")


def _check_searchable(search: str) -> None:
    """Refuse, with `OrderError`, a search on sharded parameters."""
    if search != "none":
        raise OrderError(
            f"search={search!r} does not work on sharded parameters, whose per-sample gradients no rank holds: "
            "search in one process on a smaller run, save growth.plan, and pass plan=GrowthPlan.load(...) here."
        )


def backend(accelerator: Any) -> str:
    """Accelerate's name of the distributed backend; NO without an accelerator."""
    return getattr(getattr(accelerator, "distributed_type", None), "value", "NO")


def check_bare(model: nn.Module) -> None:
    """Refuse a wrapped model at construction.

    Raises:
        OrderError: The model is wrapped by DDP, DataParallel, torch.compile or PEFT.
    """
    if "PeftModel" in class_names(model):
        raise OrderError(
            f"GrowthScheduler was given a {type(model).__name__} of PEFT: add the adapters to the Diffusers model "
            "itself, model.add_adapter(LoraConfig(...)), and construct GrowthScheduler with that model."
        )
    if unwrap(model) is not model:
        raise OrderError(
            f"GrowthScheduler was given a {type(model).__name__}: construct it with the bare model, before "
            "accelerator.prepare and torch.compile, and pass the wrapped one to growth.prepare(...)."
        )


def check_prepared(
    model: nn.Module, bare: nn.Module, accelerator: Any, *, search: str = "none"
) -> DistributedDataParallel | None:
    """Check that `model` is the prepared form of `bare`, and return its DDP wrapper if there is one.

    Raises:
        OrderError: It is another model, `accelerator.prepare` has not run on it, its parameters are sharded and there
            is a search, or its DDP wrapper has a static graph and gradients are accumulated.
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
    if is_sharded(bare):
        _check_searchable(search)
    accumulated = getattr(accelerator, "gradient_accumulation_steps", 1)
    if ddp is not None and ddp.static_graph and accumulated > 1:
        raise OrderError(
            "static_graph=True needs a first backward pass that is synchronised, or torch fails inside: set "
            f"static_graph=False to train with gradient_accumulation_steps={accumulated}."
        )
    return ddp


def check_foldable(model: nn.Module, bare: nn.Module, running: bool) -> None:
    """Check that a fold is asked for the trained model, once.

    Raises:
        OrderError: It is another model, or nothing was prepared, or it was folded already.
    """
    if unwrap(model) is not bare:
        raise OrderError("fold was given a model that this GrowthScheduler does not hold: pass the trained one.")
    if not running:
        raise OrderError("fold has nothing to fold: it runs once, after growth.prepare and training.")


def register(accelerator: Any, growth: Any) -> None:
    """Let the accelerator's checkpoints hold the state of `growth`."""
    accelerator.register_for_checkpointing(growth)
    if backend(accelerator) == "FSDP":
        accelerator.register_load_state_pre_hook(functools.partial(_load_optimizers_again, accelerator, growth))


def _load_optimizers_again(accelerator: Any, growth: Any, models: Any, folder: str) -> None:
    """Load the optimizers' state of all that had trained; an `accelerator.register_load_state_pre_hook` hook.

    Accelerate has just loaded them, but under FSDP only for what trains now, in stage 0.
    """
    path = Path(folder) / f"custom_checkpoint_{accelerator._custom_objects.index(growth)}.pkl"
    state = torch.load(path, map_location="cpu", weights_only=True)
    # Accelerate is there, since its accelerator is; this package does not depend on it.
    load = importlib.import_module("accelerate.utils").load_fsdp_optimizer
    with growth.loading(state):
        for index, (model, optimizer) in enumerate(zip(accelerator._models, prepared_optimizers(accelerator))):
            optimizer.state.clear()
            load(accelerator.state.fsdp_plugin, accelerator, optimizer, model, folder, index)


def prepared_optimizers(accelerator: Any) -> list[Any]:
    """The optimizers that `accelerator.prepare` returned so far; it has no public list of them."""
    return list(getattr(accelerator, "_optimizers", []))


def known_optimizers(given: Any, accelerator: Any) -> list[Any]:
    """The optimizers that a loop has passed (one, several or None), then those that the accelerator has prepared."""
    passed = list(given) if isinstance(given, (list, tuple)) else [given]
    return [each for each in passed if each is not None] + prepared_optimizers(accelerator)


def accumulates_now(accelerator: Any) -> bool:
    """Whether the accelerator is in the middle of an optimizer step, between two micro-batches."""
    return not getattr(accelerator, "sync_gradients", True)


def check_same_parameters(model: nn.Module, known: Iterable[str]) -> None:
    """Check that the model has the parameters it had when its units were cut.

    Raises:
        OrderError: It has others, for example a LoRA adapter that was added in between.
    """
    changed = sorted(dict(model.named_parameters()).keys() ^ known)
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
    held = {parameter for group in groups for parameter in group["params"]}
    missing = [name for name, parameter in named if parameter not in held]
    if missing:
        raise OrderError(
            f"the optimizer lacks {len(missing)} parameters that will train, first {missing[:3]}: build it from "
            "growth.parameters() (the model's, then the stage embedding's), before accelerator.prepare."
        )


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile has wrapped the model or one of its submodules."""
    inner = unwrap(model)
    # A compiled wrapper lists the bare model under `_orig_mod`, whether it is outside or inside of DDP.
    wrapped = any(name.endswith("_orig_mod") for name, _ in model.named_modules())
    return wrapped or any(module._compiled_call_impl is not None for module in inner.modules())
