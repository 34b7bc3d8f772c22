"""Pipelines that the recipes cannot train are refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from autoprog_diffusion.data.placement import on_device
from autoprog_diffusion.growth import GrowthError
from autoprog_diffusion.tasks.loading import pipeline_class
from autoprog_diffusion.tasks.stable_diffusion import load_pipeline


def with_unet(source: Path, folder: Path, **settings: object) -> Path:
    """A copy of a pipeline with another UNet."""
    shutil.copytree(source, folder)
    config = UNet2DConditionModel.load_config(source, subfolder="unet")
    UNet2DConditionModel.from_config({**config, **settings}).save_pretrained(folder / "unet")
    return folder


def test_a_unet_for_inpainting_is_refused(pipeline_dir: Path, tmp_path: Path) -> None:
    folder = with_unet(pipeline_dir, tmp_path / "model", in_channels=9)
    with pytest.raises(GrowthError, match="takes 9 channels but its VAE gives 4: models for inpainting"):
        load_pipeline(str(folder))


def test_a_unet_with_another_condition_is_refused(pipeline_dir: Path, tmp_path: Path) -> None:
    settings = {"addition_embed_type": "text", "encoder_hid_dim": 32}
    folder = with_unet(pipeline_dir, tmp_path / "model", **settings)
    with pytest.raises(GrowthError, match="addition_embed_type='text'.*which no recipe trains"):
        load_pipeline(str(folder))


def test_weights_in_bfloat16_become_float32(pipeline_dir: Path, tmp_path: Path) -> None:
    StableDiffusionPipeline.from_pretrained(pipeline_dir).to(torch.bfloat16).save_pretrained(tmp_path)
    pipeline = load_pipeline(str(tmp_path))
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    with on_device(parts, torch.device("cpu")):
        for part in parts:
            assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}


def test_the_class_is_read_from_the_folder(pipeline_dir: Path, tmp_path: Path) -> None:
    assert pipeline_class(str(pipeline_dir)) == "StableDiffusionPipeline"
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(GrowthError, match="holds no Diffusers pipeline"):
        pipeline_class(str(tmp_path))
