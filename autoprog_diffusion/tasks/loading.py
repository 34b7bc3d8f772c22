"""Pipelines from a folder, the Hub or a single file, checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Set
from difflib import get_close_matches
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from autoprog_diffusion.data.placement import cast_exactly, remember_type
from autoprog_diffusion.growth.errors import GrowthError

from .source import (
    DISPENSABLE,
    check_folder,
    check_weights,
    describe_folder,
    find_variant,
    is_single_file,
    parts_of,
    single_file_class,
    stored_dtype,
)
from .tokenizers import check_tokenizers


# Class of a pipeline -> the recipe that trains it in full.
RECIPES = {
    "StableDiffusionPipeline": "finetune_sd.py",
    "StableDiffusionXLPipeline": "finetune_sdxl.py",
    "StableDiffusion3Pipeline": "finetune_flow.py",
    "FluxPipeline": "finetune_flow.py",
    "Flux2KleinPipeline": "finetune_flow.py",
    "QwenImagePipeline": "finetune_flow.py",
    "ZImagePipeline": "finetune_flow.py",
    "SanaPipeline": "finetune_flow.py",
    "Lumina2Pipeline": "finetune_flow.py",
    "WanPipeline": "finetune_flow.py",
    "PixArtSigmaPipeline": "finetune_flow.py",
    "DiTPipeline": "finetune_dit.py",
}
DENOISERS = ("unet", "transformer")  # names of the parts that train
LOAD_ERRORS = (Exception,)  # tokenizers raise the class itself, Diffusers whatever a damaged file leads it to


def load_as(
    kind: Any,
    words: str,
    name: str,
    *,
    text_encoder_dtype: str | None = "float32",
    vae_dtype: str | None = "float32",
    **options: Any,
) -> Any:
    """A pipeline of class `kind` in float32; what parts that never train are stored in is remembered.

    Args:
        kind: The pipeline's class.
        words: What it is and has, for the message.
        name: Folder, Hub name, or checkpoint file.
        text_encoder_dtype: `stored` lets the text encoders compute in the type of their files.
        vae_dtype: `stored` lets the VAE compute in the type of its files.
        options: Of `from_pretrained`: revision, variant, cache_dir and so on.

    Raises:
        GrowthError: It cannot be loaded as such a pipeline, or a file does not say its types.
    """
    single = is_single_file(name)
    stored = {"text_encoder": text_encoder_dtype == "stored", "vae": vae_dtype == "stored"}
    for part, kept in stored.items():
        if kept and single:
            raise GrowthError(
                f"--{part}_dtype stored needs a folder or Hub name, and {name} is one file: convert it to a folder, "
                "or leave the flag out."
            )
    if single:
        pipeline = _load_single_file(kind, words, name, options.get("cache_dir"))
    else:
        pipeline = _load_folder(kind, words, name, options)
    for part, module in pipeline.components.items():
        if not isinstance(module, nn.Module):
            continue
        if any(kept and part.startswith(prefix) for prefix, kept in stored.items()):
            cast_exactly(module, stored_dtype(module))
            continue
        if part not in DENOISERS and not single:
            remember_type(module, stored_dtype(module))
        module.float()  # weights are trained and averaged in float32, whatever they were saved in
    return pipeline


def _load_folder(kind: Any, words: str, name: str, options: dict[str, Any]) -> Any:
    """A pipeline of a folder or the Hub, with weights of a variant where there are no others."""
    check_folder(name, words)
    variant = find_variant(name, options.get("variant"))
    left_out = {part: None for part in _absent(name) if part not in options}
    try:
        config = pipeline_config(name, **options)
        found = str(config.get("_class_name"))
        if found != kind.__name__:
            raise ValueError(f"its model_index.json says {found}. {recipe_for(found)}")
        _check_parts(kind, config, left_out.keys() | options.keys())
        pipeline = kind.from_pretrained(name, **{**options, **left_out, "variant": variant})
    except LOAD_ERRORS as error:
        raise GrowthError(f"{name} cannot be loaded as {words}: {error}{_hint(name, variant, error)}") from error
    check_weights(name, pipeline)
    check_tokenizers(name, pipeline)
    return pipeline


def _load_single_file(kind: Any, words: str, name: str, cache_dir: str | None) -> Any:
    """A pipeline from a checkpoint of one file; Diffusers takes configuration and tokenizer from the Hub's cache."""
    found = single_file_class(name)
    if found not in (None, kind.__name__):
        raise GrowthError(f"{name} cannot be loaded as {words}: it holds a {found}. {recipe_for(found)}")
    try:
        return kind.from_single_file(name, cache_dir=cache_dir)
    except LOAD_ERRORS as error:
        folder = Path(name).with_suffix("")
        raise GrowthError(
            f"{name} is a checkpoint of a single file, which Diffusers loads only with the configuration of its base "
            f"model from the Hub: {_first_line(error)} Convert it once where the Hub can be reached, and give the "
            f'folder: python -c "from diffusers import {kind.__name__} as P; '
            f"P.from_single_file('{name}').save_pretrained('{folder}')\""
        ) from error


def _check_parts(kind: Any, config: dict[str, Any], told: Set[str]) -> None:
    """Raise `ValueError` where a pipeline's index leaves a part out that its class needs.

    Args:
        kind: The pipeline's class.
        config: The index.
        told: Parts that Diffusers is told of.
    """
    parameters = signature(kind).parameters
    needed = {part for part, parameter in parameters.items() if parameter.default is Parameter.empty}
    lacking = []
    for part in sorted(needed - told - set(kind._optional_components)):
        if (config.get(part) or [None])[0] is None:
            lacking.append(part)
    if lacking:
        raise ValueError(f"its model_index.json names no {', '.join(lacking)}. Download it again, or save it whole.")


def _absent(name: str) -> list[str]:
    """Dispensable parts that a folder's index names and that are not there; it says so."""
    folder = Path(name)
    absent = [part for part in parts_of(folder) if part in DISPENSABLE and not (folder / part).is_dir()]
    if absent and folder.is_dir():
        print(f"{name} lacks {', '.join(absent)}: it is trained and saved without.")
        return absent
    return []


def recipe_for(kind: str | None) -> str:
    """Advice on a pipeline of a class: its recipe, or those with near names."""
    recipe = RECIPES.get(kind or "")
    if recipe is not None:
        return f"For it use recipes/{recipe}."
    near = near_names(kind or "", RECIPES)
    nearest = f" The nearest to {kind}: {' and '.join(near)}." if near else ""
    return f"No recipe trains one: use a pipeline of {sorted(RECIPES)}.{nearest}"


def near_names(kind: str, known: Iterable[str]) -> list[str]:
    """The two known pipelines whose names are nearest, if any is near; all are called pipelines."""
    by_stem = {name.removesuffix("Pipeline"): name for name in known}
    stem = kind.removesuffix("Pipeline")
    return [by_stem[near] for near in get_close_matches(stem, list(by_stem), n=2, cutoff=0.5)]


def _hint(name: str, variant: str | None, error: Exception) -> str:
    """Advice on an error of `from_pretrained`, if there is some."""
    if Path(name).is_dir() or variant is not None or "no file named" not in str(error):
        return ""
    return " A repository that holds weights of a variant only needs its name, for example --variant fp16."


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def pipeline_class(name: str, **hub: str | None) -> str:
    """Name of the class that a folder, Hub name or checkpoint file says its pipeline is.

    Args:
        name: Folder, Hub name, or checkpoint file.
        hub: Options of `from_pretrained`.

    Raises:
        GrowthError: There is no pipeline.
    """
    if is_single_file(name):
        found = single_file_class(name)
        if found is None:
            raise GrowthError(
                f"{name} does not say what it holds: convert it to a folder with from_single_file of the pipeline's "
                "class in Diffusers, and save_pretrained."
            )
        return found
    try:
        config: Any = pipeline_config(name, **hub)
    except LOAD_ERRORS as error:
        what = f" {describe_folder(Path(name))}" if Path(name).is_dir() else ""
        raise GrowthError(
            f"{name} holds no Diffusers pipeline (a folder with a model_index.json): {error}{what}"
        ) from error
    return str(config.get("_class_name"))


def pipeline_config(name: str, **hub: str | None) -> Any:
    """The index of a pipeline's parts; it has no variants."""
    config: Any = DiffusionPipeline.load_config(name, revision=hub.get("revision"), cache_dir=hub.get("cache_dir"))
    if not isinstance(config, dict):
        raise TypeError(f"its model_index.json holds a {type(config).__name__}, not the names of parts.")
    return config
