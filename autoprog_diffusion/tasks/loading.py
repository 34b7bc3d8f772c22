"""Pipelines from a folder or the Hub, checked before any work."""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from autoprog_diffusion.growth.errors import GrowthError


LOAD_ERRORS = (OSError, ValueError, TypeError, AttributeError, KeyError)


def load_as(kind: Any, words: str, name: str, **options: Any) -> Any:
    """A pipeline of class `kind`, in float32.

    Args:
        kind: The pipeline's class.
        words: What it is and has, for the message.
        name: Folder or Hub name.
        options: Of `from_pretrained`: revision, variant, cache_dir and so on.

    Raises:
        GrowthError: It cannot be loaded as such a pipeline.
    """
    try:
        pipeline = kind.from_pretrained(name, **options)
    except LOAD_ERRORS as error:
        raise GrowthError(f"{name} cannot be loaded as {words}: {error}") from error
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.float()  # weights are trained and averaged in float32, whatever they were saved in
    return pipeline


def pipeline_class(name: str, **hub: str | None) -> str:
    """Name of the class that a folder or Hub name says its pipeline is.

    Args:
        name: Folder or Hub name.
        hub: Options of `from_pretrained`.

    Raises:
        GrowthError: There is no pipeline.
    """
    try:
        config: Any = pipeline_config(name, **hub)
    except LOAD_ERRORS as error:
        raise GrowthError(f"{name} holds no Diffusers pipeline (a folder with a model_index.json): {error}") from error
    return str(config["_class_name"])


def pipeline_config(name: str, **hub: str | None) -> Any:
    """The index of a pipeline's parts; it has no variants."""
    return DiffusionPipeline.load_config(name, revision=hub.get("revision"), cache_dir=hub.get("cache_dir"))


def check_unet(name: str, pipeline: Any, addition: str | None) -> None:
    """Refuse a UNet that is conditioned on something else than the pipeline's class says.

    Diffusers loads some pipelines as another class, with a warning: SDXL as Stable Diffusion, for example.

    Raises:
        GrowthError: The message names the recipe that fits, where there is one.
    """
    config = pipeline.unet.config
    if config.addition_embed_type != addition:
        recipe = {None: "finetune_sd.py", "text_time": "finetune_sdxl.py"}.get(config.addition_embed_type)
        hint = f": use recipes/{recipe}." if recipe else ", which no recipe trains."
        raise GrowthError(
            f"the UNet of {name} has addition_embed_type={config.addition_embed_type!r}, here {addition!r} is needed"
            f"{hint}"
        )
    latent = pipeline.vae.config.latent_channels
    if config.in_channels != latent:
        raise GrowthError(
            f"the UNet of {name} takes {config.in_channels} channels but its VAE gives {latent}: models for "
            "inpainting, depth and upscaling are not trained here."
        )
