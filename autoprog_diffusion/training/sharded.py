"""FSDP2 and HSDP in the recipes: what an Accelerate configuration asks for, and what does not work under it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from autoprog_diffusion.growth import ConfigError, GrowthConfig
from autoprog_diffusion.growth.backends.accelerate import backend

from .optimizers import optimizer_name


if TYPE_CHECKING:
    from .recipe_arguments import Arguments

logger = logging.getLogger(__name__)
# Settings of `parallelism_config` that split more than the batch, and what they split.
SPLITS = {"tp_size": "the layers", "cp_size": "the tokens", "sp_size": "the tokens"}
UNET_BLOCKS = ("ResnetBlock2D", "Transformer2DModel")
# DiT's output head borrows an embedder of block 0, from outside of that block.
BORROWED = ("CombinedTimestepLabelEmbeddings",)


def is_sharding(accelerator: Any) -> bool:
    """Whether the run spreads its model over the processes, by `use_fsdp` of `accelerate config`."""
    return backend(accelerator) == "FSDP"


def shard_on_cpu(mixed_precision: str | None) -> None:
    """On a machine without a GPU, let the next `Accelerator` shard over gloo where its configuration says FSDP.

    Accelerate itself starts FSDP on accelerators only, and would run DistributedDataParallel without a word.

    Args:
        mixed_precision: As `Accelerator` takes it.
    """
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not asked or torch.accelerator.is_available() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    from accelerate import FullyShardedDataParallelPlugin, ParallelismConfig
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, TorchDynamoPlugin

    plugin = FullyShardedDataParallelPlugin()
    several = os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() == "true"
    state: Any = AcceleratorState(
        mixed_precision=mixed_precision,
        cpu=True,
        dynamo_plugin=TorchDynamoPlugin(),
        fsdp_plugin=plugin,
        parallelism_config=ParallelismConfig() if several else None,
        _from_accelerator=True,
    )
    # From here on as `AcceleratorState` does it for GPUs.
    if state.mixed_precision != "no":
        plugin.set_mixed_precision(state.mixed_precision)
    state.fsdp_plugin = plugin
    state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def check_sharding(accelerator: Any, args: Arguments) -> None:
    """Refuse, before anything is loaded, what the recipes do not do with sharded parameters.

    Raises:
        ConfigError: The message names the setting of `accelerate config`, or the flag.
    """
    if not is_sharding(accelerator):
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ConfigError(f"fsdp_version: {plugin.fsdp_version} cannot grow: set fsdp_version: 2.")
    if plugin.cpu_ram_efficient_loading:
        raise ConfigError(
            "fsdp_cpu_ram_efficient_loading: true leaves the text encoders of all processes but the first empty: set "
            "it to false."
        )
    kind = plugin.state_dict_type.name
    if kind != "SHARDED_STATE_DICT":
        raise ConfigError(
            f"fsdp_state_dict_type: {kind} is not written by the recipes, whose checkpoints are sharded and whose "
            "trained model is whole: set SHARDED_STATE_DICT."
        )
    for name, what in SPLITS.items():
        size = getattr(accelerator.parallelism_config, name, 1)
        if size > 1:
            raise ConfigError(
                f"parallelism_config_{name}: {size} would split {what}, which no recipe does: set it to 1, and use "
                "dp_shard_size and dp_replicate_size."
            )
    _check_flags(args)


def _check_flags(args: Arguments) -> None:
    """Refuse, with `ConfigError`, flags that do not work on sharded parameters."""
    train = args.train
    optimizer = optimizer_name(train)
    if optimizer != "adamw":
        raise ConfigError(
            f"--optimizer {optimizer} keeps a state that sharded checkpoints do not hold: use --optimizer adamw. Its "
            "state is cut between the processes."
        )
    if train.trained_dtype != "float32":
        raise ConfigError(
            f"--trained_dtype {train.trained_dtype} mixes types in one block, which FSDP2 cannot cut: use float32, of "
            "which every process holds a part."
        )
    if train.fused_optimizer == "on":
        raise ConfigError(
            "--fused_optimizer on was never tried on sharded parameters: use auto, which takes torch's ordinary AdamW."
        )
    if train.offload_optimizer:
        raise ConfigError(
            "--offload_optimizer does not work on sharded parameters, of whose state every process holds its part "
            "only: do without."
        )
    if args.growth.window_state == "park" and args.growth.direction == "window":
        raise ConfigError(
            "--window_state park does not work on sharded parameters, whose state lies on all processes: use "
            "--window_state release."
        )
    if args.growth.search != "none" and args.growth.growth != "off" and not args.growth.growth_plan:
        raise ConfigError(
            f"--search {args.growth.search} does not work on sharded parameters, whose per-sample gradients no rank "
            "holds: search without FSDP, perhaps on a smaller run, and pass its growth.json as --growth_plan here; or "
            "use --search none."
        )


def refuse_sharding(accelerator: Any) -> None:
    """Refuse FSDP in a script that saves whole models from one process.

    Raises:
        ConfigError: The configuration of Accelerate asks for it.
    """
    if is_sharding(accelerator):
        raise ConfigError(
            "distributed_type: FSDP is for the recipes of diffusion models: train a vision transformer with "
            "distributed_type: MULTI_GPU (DistributedDataParallel)."
        )


def sharded_growth(config: GrowthConfig, given: Sequence[str], accelerator: Any) -> GrowthConfig:
    """The growth of a run: under FSDP without the stage embedding of the defaults; one that was asked for is refused.

    Args:
        config: Growth settings of the flags.
        given: Flags of the command line.
        accelerator: Of the run.
    """
    if not is_sharding(accelerator) or "stage_embedding" in given or not config.stage_embedding:
        return config
    return replace(config, stage_embedding=None)


def name_blocks(accelerator: Any, model: nn.Module) -> None:
    """Shard block by block, where the configuration wraps blocks without naming their classes.

    Args:
        accelerator: Of a run that shards.
        model: Bare, not yet prepared.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.auto_wrap_policy is None:
        logger.warning(
            "fsdp_auto_wrap_policy: NO_WRAP gathers the whole model at once: TRANSFORMER_BASED_WRAP gathers a block."
        )
    elif not plugin.transformer_cls_names_to_wrap:
        plugin.transformer_cls_names_to_wrap = block_classes(model)


def block_classes(model: nn.Module) -> list[str]:
    """Names of the classes of a denoiser's blocks, those that the model has, each to be sharded by itself."""
    held = {type(module).__name__ for module in model.modules()}
    if "ResnetBlock2D" in held:
        return [name for name in UNET_BLOCKS if name in held]
    declared = getattr(model, "_repeated_blocks", None) or getattr(model, "_no_split_modules", None) or ()
    blocks = [name for name in declared if name in held] or _listed(model)
    if type(model).__name__.startswith("DiT"):
        blocks += BORROWED
    return blocks


def _listed(model: nn.Module) -> list[str]:
    """Classes of what a model holds in lists, which are its blocks where it declares none."""
    lists = [module for module in model.children() if isinstance(module, nn.ModuleList)]
    return sorted({type(block).__name__ for blocks in lists for block in blocks})
