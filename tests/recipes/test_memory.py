"""Flags that save memory: blocks that are computed again, small caches, text encoders as they are stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import load_file

from autoprog_diffusion import ConfigError
from autoprog_diffusion.training.saved_metrics import write_growth_json
from autoprog_diffusion.training.summary_table import recomputation_sentences

from .conftest import NewRun, Script, load_recipe


pytestmark = pytest.mark.smoke

SD = load_recipe("finetune_sd").FinetuneSD()
STEPS = ("--max_train_steps", 4, "--train_batch_size", 4, "--num_stages", 2, "--lr_warmup_steps", 0)


def trained(new_run: NewRun, script: Script, *flags: object) -> Any:
    model = ("--pretrained_model_name_or_path", script.model, "--train_data_dir", script.images)
    _, trainer, _ = new_run(SD, *model, *STEPS, *flags)
    trainer.train()
    return trainer


@pytest.mark.slow
def test_a_budget_changes_memory_and_no_weight(new_run: NewRun, script: Script, tmp_path: Path) -> None:
    plain = trained(new_run, script)
    weights = [parameter.detach().clone() for parameter in plain.bare.parameters()]
    flops = dict(plain.metrics.flops)
    assert [record.recomputed for record in plain.growth.history] == [None, None]
    every = trained(new_run, script, "--gradient_checkpointing")
    assert every.growth.config.checkpointing == "all"
    assert all(map(torch.equal, every.bare.parameters(), weights))
    auto = trained(new_run, script, "--checkpointing", "auto", "--memory_gb", 1)
    assert all(map(torch.equal, auto.bare.parameters(), weights))
    assert [record.recomputed for record in auto.growth.history] == [(), ()]
    # Measured as every step is that computes all again; the measurement itself is not counted.
    assert list(auto.metrics.flops.values()) == list(every.metrics.flops.values())
    assert all(auto.metrics.flops[name] > flops[name] for name in flops)
    memory = auto.growth.history[0].memory
    need = sum(memory[part] for part in ("weights", "gradients", "optimizer", "activations"))
    auto = trained(new_run, script, "--checkpointing", "auto", "--memory_gb", (need - 1) / 1e9)
    assert all(map(torch.equal, auto.bare.parameters(), weights))
    first, second = auto.growth.history
    assert len(first.recomputed) > 0 == len(second.recomputed)
    write_growth_json(tmp_path / "growth.json", auto.growth, auto.metrics, {})
    history = json.loads((tmp_path / "growth.json").read_text())["history"]
    assert history[0]["recomputed"] == list(first.recomputed)
    sentences = list(recomputation_sentences(history))
    assert sentences[0].startswith(f"stage 1: {len(first.recomputed)} blocks are computed again in the backward pass")


def test_plain_training_may_have_a_budget(new_run: NewRun, script: Script) -> None:
    trainer = trained(new_run, script, "--growth", "off", "--checkpointing", "auto", "--memory_gb", 1)
    assert trainer.growth.history[0].memory is not None


def test_a_budget_that_is_too_small_names_the_smallest(new_run: NewRun, script: Script) -> None:
    with pytest.raises(ConfigError, match="the smallest that is enough is"):
        trained(new_run, script, "--checkpointing", "auto", "--memory_gb", 1e-6)
    with pytest.raises(ConfigError, match="needs memory_gb"):
        trained(new_run, script, "--checkpointing", "auto")


def test_small_caches_and_parts_as_they_are_stored(new_run: NewRun, script: Script, tmp_path: Path) -> None:
    model = tmp_path / "half"
    pipeline = StableDiffusionPipeline.from_pretrained(script.model)
    pipeline.to(torch.bfloat16).save_pretrained(model)
    images = ("--pretrained_model_name_or_path", model, "--train_data_dir", script.images)
    flags = ("--cache_dtype", "bfloat16", "--validation_steps", 2)
    stored = ("--text_encoder_dtype", "stored", "--vae_dtype", "stored")
    pipeline, trainer, pictures = new_run(SD, *images, *STEPS, *flags, *stored)
    pictures.save_before()
    trainer.train()
    trainer.finish()
    SD.save(trainer, tmp_path / "saved")
    assert all(loss > 0 for loss in trainer.metrics.rows["loss"])
    assert {parameter.dtype for parameter in trainer.bare.parameters()} == {torch.float32}
    # Pictures were drawn in float32, and the others are what they were again.
    assert pipeline.text_encoder.dtype == pipeline.vae.dtype == torch.bfloat16
    before = load_file(model / "text_encoder" / "model.safetensors")
    saved = load_file(tmp_path / "saved" / "text_encoder" / "model.safetensors")
    assert all(torch.equal(saved[name], value) and saved[name].dtype == value.dtype for name, value in before.items())
