"""DreamBooth of every kind of pipeline, whole and as a LoRA: what a run leaves samples in plain Diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from ..tasks.tiny_families import BUILD
from ..tasks.tiny_transformers import build_flux, build_sd3, save
from .conftest import NewRun, Script, load_recipe


pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
FLAGS = (
    "--instance_prompt", "sks cat", "--max_train_steps", 4, "--train_batch_size", 2, "--learning_rate", 1e-2,
    "--lr_warmup_steps", 0, "--checkpointing_steps", 2, "--num_stages", 2, "--validation_prompts", "a",
    "--with_prior_preservation", "--class_prompt", "cat", "--num_class_images", 3, "--resolution", 32,
)  # fmt: skip
OPTIONS: dict[str, Any] = {
    "sd3": {"text_encoder_3": None, "tokenizer_3": None},
    "wan": {"transformer_2": None},
    "sd": {"safety_checker": None},
}
LENGTH = {"sd": (), "sdxl": (), "sd3": ("--max_sequence_length", 6), "flux": ("--max_sequence_length", 6)}
FAMILIES = {"sd3": build_sd3, "flux": build_flux, **BUILD}
QUICK = (("flux", "lora"), ("sdxl", "full"))
CASES = [
    pytest.param(kind, method, marks=() if (kind, method) in QUICK else pytest.mark.slow)
    for kind in ("sd", "sdxl", *FAMILIES)
    for method in ("full", "lora")
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, sdxl_dir: Path, script: Script) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    unets = {"sd": script.model, "sdxl": sdxl_dir}
    return unets | {kind: save(root / kind, build) for kind, build in FAMILIES.items()}


@pytest.fixture(scope="module")
def subject_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subject")
    for index, colour in enumerate(("red", "orange", "brown")):
        Image.new("RGB", (40, 32 + index), colour).save(folder / f"{index}.png")
    return folder


def state_of(pipeline: Any) -> dict[str, torch.Tensor]:
    return (getattr(pipeline, "transformer", None) or pipeline.unet).state_dict()


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_what_a_run_leaves_is_what_it_trained_and_a_resume_ends_with_its_bits(
    new_run: NewRun, models: dict[str, Path], subject_dir: Path, tmp_path: Path, kind: str, method: str
) -> None:
    recipe = load_recipe("dreambooth").FinetuneSubject()
    flags = ("--pretrained_model_name_or_path", models[kind], "--instance_data_dir", subject_dir, *FLAGS)
    flags += LENGTH.get(kind, ("--max_sequence_length", 24))
    flags += ("--rank", 2) if method == "lora" else ()
    pipeline, trainer, _ = new_run(recipe, *flags)
    assert len(list((tmp_path / "out" / "class_images").iterdir())) == 3
    before = {name: value.clone() for name, value in trainer.bare.state_dict().items()}
    trainer.train()
    trainer.finish()
    output = tmp_path / "out"
    recipe.save_pipeline(pipeline, output)
    trained = trainer.bare.state_dict()
    changed = [name for name, value in trained.items() if not torch.equal(value, before[name])]
    assert changed
    if method == "full":
        plain = diffusers.DiffusionPipeline.from_pretrained(output, **OPTIONS.get(kind, {}))
        assert all(torch.equal(value, trained[name]) for name, value in state_of(plain).items())
    else:
        assert all("lora" in name for name in changed)
        plain = diffusers.DiffusionPipeline.from_pretrained(models[kind], **OPTIONS.get(kind, {}))
        plain.load_lora_weights(output)
        assert (output / "pytorch_lora_weights.safetensors").exists()
    _, resumed, _ = new_run(recipe, *flags, "--resume_from_checkpoint", "checkpoint-2")
    resumed.train()
    resumed.finish()
    assert all(torch.equal(value, trained[name]) for name, value in resumed.bare.state_dict().items())
