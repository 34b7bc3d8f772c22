"""The flow-matching recipe with SD3 and Flux: whole runs in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from safetensors.torch import load_file

from autoprog_diffusion.growth import GrowthError, GrowthPlan
from autoprog_diffusion.tasks.arguments import FlowMatchingArguments
from autoprog_diffusion.training.run import run

from ..tasks.conftest import forget
from ..tasks.tiny import write_images
from ..tasks.tiny_transformers import build_dit, build_flux, build_sd3, save
from .conftest import Script, load_recipe


FinetuneFlow = load_recipe("finetune_flow").FinetuneFlow
Train = Callable[..., Path]
# 24 images are 3 steps of 2 batches of 4: the run crosses two epochs. Everything that has a state is on.
FLAGS = (
    "--max_train_steps", 8, "--train_batch_size", 4, "--gradient_accumulation_steps", 2, "--random_flip",
    "--use_ema", "--ema_decay", 0.7, "--lr_scheduler", "cosine", "--lr_warmup_steps", 2, "--learning_rate", 1e-3,
    "--checkpointing_steps", 3, "--resolutions", 0.5, 0.5, 1, 1, "--stage_embedding_init", "normal",
    "--proportion_empty_prompts", 0.3, "--guidance", 2.5, "--validation_prompts", "a", "b",
)  # fmt: skip
BUILD: dict[str, Any] = {"sd3": build_sd3, "flux": build_flux}
LOAD: dict[str, Any] = {
    "sd3": lambda folder: StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None),
    "flux": FluxPipeline.from_pretrained,
}
kinds = pytest.mark.parametrize("kind", BUILD)
# Resumes and searches of both classes are contracts; the recipe needs one of them.
one_kind = pytest.mark.parametrize("kind", ["sd3", pytest.param("flux", marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> dict[str, Script]:
    images = write_images(tmp_path_factory.mktemp("images"))
    return {
        kind: Script("finetune_flow", save(tmp_path_factory.mktemp(kind), build), images, environment)
        for kind, build in BUILD.items()
    }


@pytest.fixture(scope="module")
def train(scripts: dict[str, Script], tmp_path_factory: pytest.TempPathFactory) -> Train:
    cache = tmp_path_factory.mktemp("datasets")

    def start(kind: str, output: Path, *flags: object) -> Path:
        forget()
        recipe, words = FinetuneFlow(), ("--cache_dir", cache, "--max_sequence_length", 6, "--resolution", 32, *flags)
        run(recipe, recipe.parse([*scripts[kind].flags(output), *(str(word) for word in words)]))
        forget()
        return output

    return start


@pytest.fixture(scope="module")
def whole(train: Train, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: train(kind, tmp_path_factory.mktemp(f"whole-{kind}") / "out", *FLAGS) for kind in BUILD}


def weights(output: Path) -> Path:
    return output / "transformer" / "diffusion_pytorch_model.safetensors"


@kinds
def test_a_run_leaves_a_plain_pipeline(scripts: dict[str, Script], whole: dict[str, Path], kind: str) -> None:
    pipeline = LOAD[kind](whole[kind])
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    image = pipeline(
        "a", num_inference_steps=2, height=32, width=32, max_sequence_length=6, generator=generator
    ).images
    assert image[0].size == (32, 32)
    start, end = (load_file(weights(folder)) for folder in (scripts[kind].model, whole[kind]))
    assert list(start) == list(end)
    rested = [name for name in start if torch.equal(start[name], end[name])]
    assert rested == (["pos_embed.pos_embed"] if kind == "sd3" else [])
    for part in ("vae", "text_encoder", "text_encoder_2"):
        for file in (scripts[kind].model / part).glob("*.safetensors"):
            assert file.read_bytes() == (whole[kind] / part / file.name).read_bytes()


@kinds
def test_a_run_leaves_its_report(whole: dict[str, Path], kind: str) -> None:
    plan = GrowthPlan.load(whole[kind] / "growth.json")
    assert [stage.resolution for stage in plan.stages] == [0.5, 0.5, 1.0, 1.0]
    assert [len(stage.blocks) for stage in plan.stages] == [4, 3, 2, 1]
    assert (whole[kind] / "before_after.png").exists()
    report = json.loads((whole[kind] / "growth.json").read_text())
    assert all(row["loss"] > 0 for row in report["stages"])


@one_kind
def test_a_resumed_run_ends_with_the_same_bits(
    train: Train, whole: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    output = tmp_path / "out"
    for name in ("checkpoints/checkpoint-3", "before"):
        shutil.copytree(whole[kind] / name, output / name)
    train(kind, output, *FLAGS, "--resume_from_checkpoint", "latest")
    assert weights(output).read_bytes() == weights(whole[kind]).read_bytes()


@one_kind
def test_the_search_works_with_flows(train: Train, tmp_path: Path, kind: str) -> None:
    flags = ("--max_train_steps", 10, "--train_batch_size", 8, "--num_stages", 2, "--validation_prompts", "a")
    output = train(kind, tmp_path / "out", *flags, "--search", "zero_shot", "--no-cache_latents")
    decisions = json.loads((output / "growth.json").read_text())["decisions"]
    assert [decision["stage"] for decision in decisions]


BAD = {
    "model": ("sd3", ("--pretrained_model_name_or_path", "{dit}"), "is a DiTPipeline: only"),
    "length": ("sd3", ("--max_sequence_length", 600), "--max_sequence_length 600 is not allowed"),
    "multiple": ("flux", ("--resolution", 36), "not a multiple of 8"),
    "batch": ("flux", ("--train_batch_size", 25), "24 images, fewer than one batch of 25"),
}


def test_bad_input_is_refused_by_name(train: Train, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in BAD:
        tmp_path = tmp_path_factory.mktemp("case")
        kind, flags, message = BAD[name]
        if "{dit}" in flags:
            flags = (flags[0], save(tmp_path / "dit", build_dit))
        with pytest.raises(GrowthError, match=message):
            train(kind, tmp_path / "out", *flags)
        forget()


def test_the_default_model_brings_its_flags() -> None:
    args = FinetuneFlow().parse([])
    assert isinstance(args, FlowMatchingArguments)
    assert (args.flow.max_sequence_length, args.flow.proportion_empty_prompts) == (16, 0.1)
    named = FinetuneFlow().parse(["--pretrained_model_name_or_path", "x", "--weighting_scheme", "mode"])
    assert (named.flow.max_sequence_length, named.flow.weighting_scheme) == (None, "mode")


@pytest.mark.slow
def test_the_default_run_leaves_a_pipeline_that_needs_no_arguments(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    script = Script("finetune_flow", Path(), Path(), environment)
    done = script.run_bare(("--output_dir", tmp_path / "out", "--max_train_steps", 8, "--num_inference_steps", 2))
    assert "progressive training, stage by stage" in done.stdout
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path / "out")
    assert pipeline("red heart", num_inference_steps=1, height=64, width=64).images[0].size == (64, 64)
