"""What the UNet recipes share through the loop: mixed precision, searches, and two processes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from autoprog_diffusion.training.recipe import Recipe

from .conftest import NewRun, Script, load_recipe


pytestmark = pytest.mark.smoke


RECIPES: dict[str, Recipe] = {
    "finetune_sdxl": load_recipe("finetune_sdxl").FinetuneSDXL(),
    "finetune_lora": load_recipe("finetune_lora").FinetuneLora(),
    "dreambooth": load_recipe("dreambooth").FinetuneSubject(),
}
PRIOR = ("--instance_prompt", "sks cat", "--with_prior_preservation", "--class_prompt", "cat", "--num_class_images", 4)
FLAGS = {
    "finetune_sdxl": ("--train_data_dir",),
    "finetune_lora": ("--use_dora", "--train_data_dir"),
    "dreambooth": (*PRIOR, "--instance_data_dir"),
}


# The others repeat the launch of the first one.
NAMES = [name if name == "finetune_lora" else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]


def flags_of(name: str, script: Script, sdxl_dir: Path) -> tuple[object, ...]:
    model = sdxl_dir if name == "finetune_sdxl" else script.model
    return ("--pretrained_model_name_or_path", model, *FLAGS[name], script.images)


@pytest.mark.parametrize("name", NAMES)
def test_they_train_in_bfloat16_and_keep_float32_weights(
    new_run: NewRun, script: Script, sdxl_dir: Path, name: str
) -> None:
    flags = ("--mixed_precision", "bf16", "--max_train_steps", 4, "--train_batch_size", 4, "--learning_rate", 1e-3)
    _, trainer, _ = new_run(RECIPES[name], *flags_of(name, script, sdxl_dir), *flags, "--gradient_checkpointing")
    trainer.train()
    trainer.finish()
    assert all(loss > 0 for loss in trainer.metrics.rows["loss"])
    assert {parameter.dtype for parameter in trainer.bare.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", NAMES)
def test_a_search_chooses_their_stages(new_run: NewRun, script: Script, sdxl_dir: Path, name: str) -> None:
    flags = ("--search", "zero_shot", "--max_train_steps", 20, "--train_batch_size", 4, "--num_stages", 2)
    _, trainer, _ = new_run(RECIPES[name], *flags_of(name, script, sdxl_dir), *flags)
    trainer.train()
    assert [row["stage"] for row in trainer.growth.decisions] == [1]
    assert len(trainer.growth.plan.stages[1].blocks) > 0
    assert trainer.growth.plan.stages[2].blocks == tuple(range(trainer.growth.plan.num_blocks))


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_end_with_equal_weights(script: Script, sdxl_dir: Path, tmp_path: Path, name: str) -> None:
    script = dataclasses.replace(script, name=name)
    flags = ("--max_train_steps", 8, "--train_batch_size", 2, "--resolutions", 0.5, 0.5, 1, 1, "--use_ema")
    flags += ("--validation_prompts", "a", "--num_inference_steps", 2, "--search", "none")
    output = tmp_path / "out"
    command = ("--output_dir", output, *flags_of(name, script, sdxl_dir), *flags)
    done = script.run_bare(command, ranks=2)
    assert done.stdout.count("2 ranks end with bit-identical weights") == 1
    path = "pytorch_lora_weights" if name == "finetune_lora" else "unet/diffusion_pytorch_model"
    assert all(tensor.isfinite().all() for tensor in load_file(output / f"{path}.safetensors").values())
