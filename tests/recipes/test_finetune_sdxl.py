"""The SDXL recipe in this process: what it leaves, and killed and started again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

from autoprog_diffusion.growth import GrowthError
from autoprog_diffusion.training.run import run
from autoprog_diffusion.training.samples import sample_images

from ..tasks.training import same, weights
from .conftest import NewRun, Script, load_recipe


RECIPE = load_recipe("finetune_sdxl").FinetuneSDXL()
FLAGS = (
    "--max_train_steps", 8, "--train_batch_size", 4, "--gradient_accumulation_steps", 2, "--random_flip",
    "--learning_rate", 1e-3, "--use_ema", "--ema_decay", 0.5, "--proportion_empty_prompts", 0.2,
    "--stage_embedding_init", "normal", "--checkpointing_steps", 3, "--resolutions", 0.5, 0.5, 1, 1,
)  # fmt: skip


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_leaves_a_plain_pipeline(script: Script, sdxl_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    flags = [*script.flags(output), "--pretrained_model_name_or_path", sdxl_dir, "--cache_dir", tmp_path / "hub"]
    run(RECIPE, RECIPE.parse([str(flag) for flag in (*flags, *FLAGS, "--validation_prompts", "a", "b")]))
    for name in ("before_after.png", "timeline.png"):
        assert (output / name).stat().st_size > 100, name
    values = json.loads((output / "growth.json").read_text())
    assert [stage["resolution"] for stage in values["plan"]["stages"]] == [0.5, 0.5, 1.0, 1.0]
    plain, start = (StableDiffusionXLPipeline.from_pretrained(folder) for folder in (output, sdxl_dir))
    names = list(start.unet.state_dict())
    assert list(plain.unet.state_dict()) == names
    assert not any(torch.equal(plain.unet.state_dict()[name], start.unet.state_dict()[name]) for name in names)
    for part in ("text_encoder", "text_encoder_2", "vae"):
        first, second = (getattr(pipeline, part).state_dict() for pipeline in (plain, start))
        assert all(torch.equal(first[name], second[name]) for name in first)
    options: Any = {"size": 64, "steps": 2, "guidance": 3.0, "seed": 0}
    assert sample_images(plain, ["a"], **options)[0].tobytes() != sample_images(start, ["a"], **options)[0].tobytes()


@pytest.mark.parametrize(
    "cached", [(), pytest.param(("--no-cache_latents",), marks=pytest.mark.slow)], ids=["cached", "disk"]
)
def test_a_resumed_run_ends_bit_identical(
    new_run: NewRun, script: Script, sdxl_dir: Path, cached: tuple[str, ...]
) -> None:
    flags = ("--pretrained_model_name_or_path", sdxl_dir, "--train_data_dir", script.images, *FLAGS, *cached)
    _, whole, _ = new_run(RECIPE, *flags, "--validation_prompts", "a")
    whole.train()
    whole.finish()
    _, resumed, _ = new_run(RECIPE, *flags, "--resume_from_checkpoint", "checkpoint-3")
    resumed.train()
    resumed.finish()
    assert same(weights(whole), weights(resumed))
    assert resumed.metrics.rows["loss"] == whole.metrics.rows["loss"]


def test_a_pipeline_of_another_kind_is_refused(new_run: NewRun, script: Script, tmp_path: Path) -> None:
    with pytest.raises(GrowthError, match=r"says StableDiffusionPipeline\. For it use recipes/finetune_sd\.py"):
        new_run(RECIPE, *script.flags(tmp_path / "out"))


def test_the_default_is_the_bundled_model_as_sdxl() -> None:
    args = RECIPE.parse([])
    assert args.train.max_train_steps == 700
    pipeline = RECIPE.load(args)
    assert type(pipeline) is StableDiffusionXLPipeline
    assert RECIPE.resolution(pipeline) == 64
