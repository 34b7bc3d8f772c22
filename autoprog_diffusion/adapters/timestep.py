"""Timestep embedders of denoisers: the places where a stage embedding enters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import nn

from autoprog_diffusion.growth.adapter import by_class
from autoprog_diffusion.growth.errors import UnitError


# Names of the modules that embed the timestep and only the timestep. A combined embedder (time_text_embed, time_embed,
# adaln_single, ...) holds one of them inside; the innermost match counts.
TIMESTEP_NAMES = (
    "time_embedding",
    "timestep_embedder",
    "time_embedder",
    "time_embed",
    "time_step_proj",
    "time_mlp",
    "time_in",
    "time_token",
    "time_embeddings",
    "timestep_proj",
    "to_timestep_embed",
    "t_embedder",
    "t_embedding",
    "p_embedder",
)
# Embedders inside these do not count: text refiners have timestep embedders of their own.
OTHER_PARENTS = ("context_embedder", "text_fusion", "token_refiner", "add_time_condition")
# Model class -> names of its embedders, where the rule above is not enough.
TIMESTEP_MODULES: dict[str, tuple[str, ...]] = {
    # The other timestep embedders of these set scales and gates between video and audio.
    "LTX2VideoTransformer3DModel": ("time_embed.emb.timestep_embedder",),
    "SanaWMLTX2RefinerTransformer3DModel": ("time_embed.emb.timestep_embedder",),
}


def timestep_embedders(model: nn.Module) -> list[str]:
    """Names of the linear layers that end the timestep embedders of a Diffusers denoiser, one per embedder.

    Adding a vector to the output of such a layer is adding it to the layer's bias, so a stage embedding that enters
    there can be folded away exactly. Models that embed the timestep in every block (DiT) have several.

    Raises:
        UnitError: There is none, one has no bias, or they differ in width.
    """
    found = by_class(model, TIMESTEP_MODULES) or _embedders(model)
    points = list(filter(None, [_last_linear(model, embedder) for embedder in found]))
    if not points:
        raise UnitError(
            f"{type(model).__name__} has no timestep embedder (a module named one of {TIMESTEP_NAMES} that ends in a "
            "linear layer), so a stage embedding has no place: set GrowthConfig(stage_embedding=False)."
        )
    without = [name for name in points if linear(model, name).bias is None]
    if without:
        raise UnitError(
            f"{without[0]} has no bias, so a stage embedding could not be folded into it: set "
            "GrowthConfig(stage_embedding=False)."
        )
    widths = {linear(model, name).out_features for name in points}
    if len(widths) > 1:
        raise UnitError(
            f"the timestep embedders {points[:4]} differ in width {sorted(widths)}: set stage_embedding=False."
        )
    return points


def linear(model: nn.Module, name: str) -> nn.Linear:
    """The linear layer called `name`; the one inside, if PEFT has wrapped it."""
    module: Any = model.get_submodule(name)
    return cast(nn.Linear, getattr(module, "base_layer", module))


def _embedders(model: nn.Module) -> list[str]:
    """Names of the modules that embed the timestep and nothing else, by their own names."""
    names = []
    for name, _ in model.named_modules():
        leaf = name.rpartition(".")[2]
        if leaf in TIMESTEP_NAMES and not any(parent in name for parent in OTHER_PARENTS):
            names.append(name)
    # A combined embedder holds another one: the innermost counts.
    return [name for name in names if not any(inner.startswith(f"{name}.") for inner in names)]


def _last_linear(model: nn.Module, embedder: str) -> str | None:
    """`linear_2` of Diffusers' `TimestepEmbedding`, else the last linear layer inside."""
    names = list(_linear_layers(model.get_submodule(embedder), embedder))
    second = f"{embedder}.linear_2"
    return second if second in names else next(reversed(names), None)


def _linear_layers(module: Any, name: str) -> Iterator[str]:
    """Names of the linear layers in the module called `name`; inside a PEFT layer are none of the model's own."""
    if isinstance(getattr(module, "base_layer", module), nn.Linear):
        yield name
    elif not hasattr(module, "base_layer"):
        for child, inner in module.named_children():
            yield from _linear_layers(inner, f"{name}.{child}")
