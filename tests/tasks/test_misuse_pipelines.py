"""Pipelines that Diffusers loads, and that fail in the middle of a run, are refused by name before it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from peft import LoraConfig
from transformers import CLIPTokenizer

from autoprog_diffusion.growth import GrowthError
from autoprog_diffusion.tasks.flow_matching import load_flow
from autoprog_diffusion.tasks.lora import load_any
from autoprog_diffusion.tasks.sdxl import load_sdxl
from autoprog_diffusion.tasks.stable_diffusion import load_pipeline

from .tiny_folders import LOADERS, edit


CopyOf = Callable[[str], Path]


@pytest.fixture
def copy_of(folders: dict[str, Path], tmp_path: Path) -> CopyOf:
    def copy(kind: str) -> Path:
        return Path(shutil.copytree(folders[kind], tmp_path / "model"))

    return copy


PARTS = [
    ("sd", "tokenizer"),
    ("sd", "vae"),
    ("sdxl", "scheduler"),
    ("dit", "vae"),
    ("sd3", "text_encoder"),
    ("flux", "tokenizer_2"),
]


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_parts_that_the_index_leaves_out_are_named(copy_of: CopyOf, kind: str, part: str) -> None:
    folder = copy_of(kind)
    edit(folder / "model_index.json", **{part: [None, None]})
    with pytest.raises(GrowthError, match=f"its model_index.json names no {part}"):
        LOADERS[kind](str(folder))


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_a_text_encoder_needs_a_tokenizer(copy_of: CopyOf, part: str) -> None:
    """SDXL may lack both: Diffusers loads it with one of them."""
    folder = copy_of("sdxl")
    edit(folder / "model_index.json", **{part: [None, None]})
    with pytest.raises(GrowthError, match=f"has {part.replace('tokenizer', 'text_encoder')} but no {part}: "):
        load_sdxl(str(folder))


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("length", [77, 10**30, None])
def test_a_tokenizer_of_too_many_tokens_is_refused(copy_of: CopyOf, kind: str, length: int | None) -> None:
    folder = copy_of(kind)
    config = folder / "tokenizer" / "tokenizer_config.json"
    if length is None:
        config.unlink()
    else:
        edit(config, model_max_length=length)
    with pytest.raises(GrowthError, match="the tokenizer of .* model_max_length=.*takes (16|8) tokens at most: write"):
        LOADERS[kind](str(folder))


def test_a_tokenizer_whose_length_is_no_number_is_refused(copy_of: CopyOf) -> None:
    folder = copy_of("sd")
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=[77])
    with pytest.raises(GrowthError, match=r"model_max_length=\[77\]: only a number is allowed"):
        LOADERS["sd"](str(folder))


def test_tokens_without_an_embedding_are_refused(copy_of: CopyOf) -> None:
    folder = copy_of("sd")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens(["<sks>"])
    tokenizer.save_pretrained(folder / "tokenizer")
    with pytest.raises(GrowthError, match=r"has 55 tokens, and its text encoder knows 54: .*resize_token_embeddings"):
        load_pipeline(str(folder))
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.text_encoder.resize_token_embeddings(55)
    pipeline.save_pretrained(folder)
    load_pipeline(str(folder))


BETAS: dict[str, tuple[dict[str, Any], str]] = {
    "few": ({"trained_betas": [0.1] * 10}, "has 10 trained_betas and num_train_timesteps=1000"),
    "above 1": ({"beta_end": 1.5}, "lie between .* and 1.5, and only"),
    "below 0": ({"beta_start": -0.1, "beta_schedule": "linear"}, "lie between -0.1 and"),
    "no number": ({"trained_betas": [float("nan")] * 1000}, "lie between nan and nan"),
}


@pytest.mark.parametrize("name", BETAS)
@pytest.mark.parametrize("kind", ["sd", "dit"])
def test_betas_that_are_no_noise_are_refused(copy_of: CopyOf, kind: str, name: str) -> None:
    settings, message = BETAS[name]
    folder = copy_of(kind)
    edit(folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=False, **settings)
    with pytest.raises(GrowthError, match=message):
        LOADERS[kind](str(folder))


@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_a_shift_without_noise_is_refused(copy_of: CopyOf, shift: float) -> None:
    folder = copy_of("sd3")
    edit(folder / "scheduler" / "scheduler_config.json", shift=shift)
    with pytest.raises(GrowthError, match=f"has shift={shift}, .*above 0"):
        load_flow(str(folder))


def test_weights_that_are_missing_in_older_files_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    """Files of `torch.save`, before and after PyTorch 1.6."""
    StableDiffusionPipeline.from_pretrained(folders["sd"]).save_pretrained(tmp_path, safe_serialization=False)
    file = tmp_path / "unet" / "diffusion_pytorch_model.bin"
    weights = torch.load(file, weights_only=True)
    load_pipeline(str(tmp_path))
    torch.save(weights, file, _use_new_zipfile_serialization=False)
    load_pipeline(str(tmp_path))
    gone = next(iter(weights))
    del weights[gone]
    for archive in (False, True):
        torch.save(weights, file, _use_new_zipfile_serialization=archive)
        with pytest.raises(GrowthError, match=f"the files of unet lack 1 tensors.*{gone}"):
            load_pipeline(str(tmp_path))


def test_a_pipeline_that_was_saved_with_adapters_inside_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folders["sd"])
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(GrowthError, match="was saved with adapters in its unet.*fuse_lora"):
        load_pipeline(str(tmp_path))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path)
    load_pipeline(str(tmp_path))


def test_an_index_of_another_kind_is_named(copy_of: CopyOf) -> None:
    folder = copy_of("sd")
    index = folder / "model_index.json"
    for load in (load_pipeline, load_any):
        with pytest.raises(GrowthError, match="is a configuration, no model: give the folder"):
            load(str(index))
    edit(index, _class_name=["my_pipeline", "MyPipeline"])
    with pytest.raises(GrowthError, match=r"says \['my_pipeline', 'MyPipeline'\]. No recipe trains one"):
        load_pipeline(str(folder))
    index.write_text("[]")
    for load in (load_pipeline, load_any):
        with pytest.raises(GrowthError, match="holds a list, not the names of parts"):
            load(str(folder))
