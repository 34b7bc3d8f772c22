"""Whether a model, its wrapper and its optimizers can grow in depth and resolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from autoprog_diffusion.growth.backends import accelerate as host
from autoprog_diffusion.growth.backends.fsdp2 import is_sharded
from autoprog_diffusion.growth.bare import bare
from autoprog_diffusion.growth.errors import OrderError, PlanError

from ..retokenize import Retokenizer
from .config import ViTGrowthConfig
from .shapes import Grid


def check_backend(accelerator: Any, model: nn.Module) -> None:
    """Refuse a backend that splits the weights that growth moves between blocks.

    Raises:
        OrderError: The accelerator runs neither one process nor DistributedDataParallel, or parameters are sharded.
    """
    kind = host.backend(accelerator)
    if kind not in host.SUPPORTED or is_sharded(model):
        raise OrderError(
            f"distributed_type={kind} cannot grow in depth: weights and optimizer state move between blocks, which "
            "sharding splits over ranks. Use one process or DistributedDataParallel."
        )


def check_supernet(wrapped: nn.Module, ddp: DistributedDataParallel | None) -> None:
    """Refuse a wrapper for which the network may not change from step to step.

    Raises:
        OrderError: The model is compiled, or its DistributedDataParallel has a static graph.
    """
    changes = "search='one_shot' changes the network in every step of its supernet phases"
    if host.is_compiled(wrapped):
        raise OrderError(
            f"{changes}, each a new graph for torch.compile: use search='zero_shot' or 'fixed', or do not compile."
        )
    if ddp is not None and ddp.static_graph:
        raise OrderError(
            f"{changes}: set static_graph=False in DistributedDataParallel (DistributedDataParallelKwargs)."
        )


def find_optimizers(given: Any, accelerator: Any, model: nn.Module) -> list[torch.optim.Optimizer]:
    """The loop's optimizers without Accelerate's wrappers.

    Raises:
        OrderError: There is none, or a parameter that will train is in none.
    """
    found = [given, *host.prepared_optimizers(accelerator)]
    inner = [bare(each) for each in found if each is not None]
    # An optimizer may be given, and known to the accelerator too.
    optimizers = list(dict.fromkeys(inner))
    if not optimizers:
        raise OrderError(
            "growth.prepare found no optimizer, whose state grows with the blocks: pass optimizer=..., or prepare it "
            "with the accelerator first."
        )
    trains = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    host.check_optimizers(optimizers, trains)
    return optimizers


def make_retokenizer(
    config: ViTGrowthConfig, model: nn.Module, grid: Grid, projection: str | None
) -> Retokenizer | None:
    """The object that changes the model's stride, where the configuration asks for it.

    Raises:
        RetokenError: The model cannot be re-tokenized, or not with one of the strides.
        PlanError: A stride does not divide its stage's images, or the last one is not the model's own.
    """
    if config.strides is None:
        return None
    tokens = Retokenizer(model, projection)
    for stage, (stride, side) in enumerate(zip(config.strides, grid.resolutions, strict=True)):
        if side % tokens.check(stride):
            raise PlanError(f"stage {stage}: a stride of {stride} pixels does not divide its images of {side} pixels.")
    if tokens.check(config.strides[-1]) != tokens.native:
        raise PlanError(f"strides={config.strides} must end with the model's own, {tokens.native} or None.")
    return tokens
