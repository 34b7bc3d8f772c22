"""The LoRA recipe in this process: what it leaves, and killed and started again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from autoprog_diffusion.growth import GrowthError
from autoprog_diffusion.training.batch_probe import batch_advice
from autoprog_diffusion.training.run import run
from autoprog_diffusion.training.samples import sample_images

from ..tasks.tiny_transformers import build_dit, build_sd3, save
from .conftest import NewRun, Script, load_recipe


RECIPE = load_recipe("finetune_lora").FinetuneLora()
FLAGS = (
    "--max_train_steps", 8, "--train_batch_size", 4, "--gradient_accumulation_steps", 2, "--random_flip",
    "--average", "on", "--average_widths", 0.28,
    "--learning_rate", 1e-2, "--lora_dropout", 0.1, "--rank", 2, "--lora_alpha", 3,
    "--checkpointing_steps", 3, "--validation_prompts", "a", "--resolutions", 0.5, 0.5, 1, 1,
)  # fmt: skip


def trained(denoiser: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in denoiser.named_parameters() if "lora_" in name}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_leaves_a_file_that_diffusers_loads(script: Script, tmp_path: Path) -> None:
    output = tmp_path / "out"
    flags = [*script.flags(output), "--cache_dir", str(tmp_path / "hub"), *map(str, FLAGS)]
    run(RECIPE, RECIPE.parse(flags))
    for name in ("before_after.png", "timeline.png", "growth.json", "growth_plan.json"):
        assert (output / name).stat().st_size > 100, name
    assert not (output / "model_index.json").exists()
    assert not (output / "stage_embedding.safetensors").exists()
    values = json.loads((output / "growth.json").read_text())
    shares = [row["trainable"] for row in values["stages"]]
    assert shares == sorted(set(shares), reverse=True)
    blocks = [len(stage["blocks"]) for stage in values["plan"]["stages"]]
    assert blocks == sorted(set(blocks), reverse=True)
    plain = StableDiffusionPipeline.from_pretrained(script.model, safety_checker=None)
    options: Any = {"size": 64, "steps": 2, "guidance": 3.0, "seed": 0}
    before = sample_images(plain, ["a"], **options)[0]
    plain.load_lora_weights(output)
    assert sample_images(plain, ["a"], **options)[0].tobytes() != before.tobytes()


@pytest.mark.parametrize("kind", ["sd", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sdxl", "sd3"))])
def test_a_resumed_run_ends_bit_identical(
    new_run: NewRun, script: Script, sdxl_dir: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"sd": script.model, "sdxl": sdxl_dir}.get(kind) or save(tmp_path / "sd3", build_sd3)
    flags = ("--pretrained_model_name_or_path", model, "--train_data_dir", script.images, *FLAGS)
    pipeline, whole, _ = new_run(RECIPE, *flags)
    base = {name: value.clone() for name, value in whole.bare.state_dict().items() if "lora_" not in name}
    start = trained(whole.bare)
    whole.train()
    raw = trained(whole.bare)
    whole.finish()
    ends = trained(whole.bare)
    assert not any(torch.equal(start[name], ends[name]) for name in start)
    assert not any(torch.equal(raw[name], ends[name]) for name in start)  # the average was copied in
    assert all(torch.equal(value, base[name]) for name, value in whole.bare.state_dict().items() if name in base)
    folder = tmp_path / "out" / "checkpoints" / "checkpoint-3"
    assert sorted(load_file(folder / "trained.safetensors")) == sorted(start)
    assert not list(folder.glob("model*"))
    _, resumed, pictures = new_run(RECIPE, *flags, "--resume_from_checkpoint", "checkpoint-3", "--probe_batch")
    assert resumed.step == 3
    capsys.readouterr()
    resumed.train()  # a probe before it leaves no trace
    assert "5 steps of 8 images get as far as" in capsys.readouterr().out
    resumed.finish()
    pictures.save_before_after(resumed.step)
    assert (tmp_path / "out" / "before_after.png").stat().st_size > 100
    assert same(trained(resumed.bare), ends)
    assert resumed.metrics.rows["loss"] == whole.metrics.rows["loss"]
    resumed.epoch_batches = 2
    with pytest.raises(GrowthError, match="--probe_batch compares the gradients of at least 3 batches of an epoch"):
        batch_advice(resumed, accumulation=2)


def test_a_checkpoint_of_other_targets_is_refused(new_run: NewRun, script: Script) -> None:
    flags = ("--pretrained_model_name_or_path", script.model, "--train_data_dir", script.images, *FLAGS)
    new_run(RECIPE, *flags)[1].train()
    with pytest.raises(GrowthError, match="checkpoint-6 holds the weights of .* parameters that train, the run has"):
        new_run(RECIPE, *flags, "--target_modules", "to_q", "--resume_from_checkpoint", "latest")


def test_a_stage_embedding_is_saved_beside_the_file(new_run: NewRun, script: Script, tmp_path: Path) -> None:
    flags = ("--pretrained_model_name_or_path", script.model, "--train_data_dir", script.images, *FLAGS)
    _, trainer, _ = new_run(RECIPE, *flags, "--stage_embedding")
    trainer.train()
    trainer.finish()
    assert load_file(tmp_path / "out" / "stage_embedding.safetensors")["stage"].abs().max() > 0


BAD = {
    "rank": (("--rank", 0), "--rank 0 is not allowed"),
    "target": (("--target_modules", "to_k", "nonsense"), "'nonsense' names no linear or convolution layer"),
    "model": (("--pretrained_model_name_or_path", "{tmp}/dit"), "is a DiTPipeline, which this recipe does not train"),
    "flow": (("--weighting_scheme", "mode"), "--weighting_scheme is for flow matching"),
    "empty": (("--proportion_empty_prompts", 1.5), "--proportion_empty_prompts 1.5 is not allowed"),
    "data": (("--train_data_dir", "{tmp}/none"), "none does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(new_run: NewRun, script: Script, tmp_path: Path, name: str) -> None:
    if name == "model":
        save(tmp_path / "dit", build_dit)
    flags = [str(flag).replace("{tmp}", str(tmp_path)) for flag in BAD[name][0]]
    with pytest.raises(GrowthError, match=BAD[name][1]):
        new_run(RECIPE, *script.flags(tmp_path / "out"), *flags)


def test_the_default_trains_the_bundled_model(script: Script) -> None:
    args = RECIPE.parse([])
    assert args.lora.rank == 16
    assert "conv1" in args.lora.target_modules
    assert args.growth.stage_embedding is False
    named = RECIPE.parse(["--pretrained_model_name_or_path", "x", "--rank", "2", "--stage_embedding"])
    assert named.lora.target_modules == ("to_k", "to_q", "to_v", "to_out.0")
    assert (named.lora.rank, named.growth.stage_embedding) == (2, True)
