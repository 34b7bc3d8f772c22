"""The stage embedding that a recipe has by default, where a model has no place for one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import nn

from autoprog_diffusion.adapters.timestep import linear, timestep_embedders
from autoprog_diffusion.growth import GrowthConfig
from autoprog_diffusion.growth.errors import UnitError


# Flags that ask for one.
OF_THE_EMBEDDING = frozenset({"stage_embedding", "stage_embedding_init", "stage_dropout"})


def default_embedding(config: GrowthConfig, given: Collection[str], model: nn.Module) -> GrowthConfig:
    """The settings without a stage embedding that nobody asked for and that the model has no place for.

    Flux.2, for example, embeds the timestep without biases, and beside adapters the biases are frozen. It is said in
    the log; what the command line asks for is refused by name later.

    Args:
        config: Of the run.
        given: Flags of the command line.
        model: Bare denoiser.
    """
    if not config.stage_embedding or not OF_THE_EMBEDDING.isdisjoint(given):
        return config
    return config if has_place(model) else replace(config, stage_embedding=None, stage_dropout=0.0)


def has_place(model: nn.Module) -> bool:
    """Whether a stage embedding can be folded into a layer of the model that trains."""
    try:
        points = timestep_embedders(model)
    except UnitError:
        return False
    biases = [linear(model, name).bias for name in points]
    return all(bias.requires_grad for bias in biases)
