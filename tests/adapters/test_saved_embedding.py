"""Sampling with a saved stage embedding: the null row goes to the unconditional half, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.adapters import use_stage_embedding
from autoprog_diffusion.adapters.saved_embedding import read_embedding
from autoprog_diffusion.growth import StateError

from ..settings import BY_ID, Family


def trained(family: Family, folder: Path, **settings: Any) -> tuple[nn.Module, Tensor]:
    """A model with a table of random rows, saved and folded; and the table."""
    model = family.build().eval()
    growth = GrowthScheduler(model, GrowthConfig(num_stages=2, order="interleaved", direction="unfreeze", **settings))
    growth.prepare(model, num_training_steps=2)
    growth.step()
    growth.step()
    table = growth.stage_embedding.table
    with torch.no_grad():
        table.normal_(generator=torch.Generator().manual_seed(3))
    growth.save_stage_embedding(folder)
    growth.fold(model)
    return model, table.detach()


class Embedded:
    """What the layers that end the timestep embedders gave, less what they give without any stage embedding."""

    def __init__(self, model: nn.Module, name: str, bias: Tensor) -> None:
        self.rows: list[Tensor] = []
        self._layer, self._bias = model.get_submodule(name), bias
        self.handle = self._layer.register_forward_hook(self._note)

    def _note(self, module: Any, args: Any, output: Tensor) -> None:
        self.rows.append(output - nn.functional.linear(args[0], module.weight, self._bias))


POINTS = {"sd": "time_embedding.linear_2", "dit": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2"}


def embedded_rows(family: Family, folder: Path, call: Any) -> tuple[Tensor, Tensor]:
    """Rows (N, D) that `call(model)` gets inside `use_stage_embedding`, and the table."""
    bias = family.build().get_submodule(POINTS[family.id]).bias.detach()
    model, table = trained(family, folder, stage_dropout=0.1)
    probe: list[Embedded] = []
    with torch.no_grad():
        call(model, lambda: probe.append(Embedded(model, POINTS[family.id], bias)))
    return probe[0].rows[0], table


def test_a_stable_diffusion_pipeline_gets_the_null_row_on_its_first_half(tmp_path: Path) -> None:
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=10)

    def call(model: nn.Module, watch: Any) -> None:
        parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
        pipeline = diffusers.StableDiffusionPipeline(
            unet=model, scheduler=scheduler, requires_safety_checker=False, **parts
        )
        pipeline.vae_scale_factor = 8
        pipeline.set_progress_bar_config(disable=True)
        with use_stage_embedding(pipeline, tmp_path):
            watch()
            pipeline(
                prompt_embeds=torch.randn(2, 5, 8), negative_prompt_embeds=torch.zeros(2, 5, 8), height=128, width=128,
                num_inference_steps=1, output_type="latent", guidance_scale=3.0,
            )  # fmt: skip

    rows, table = embedded_rows(BY_ID["sd"], tmp_path, call)
    expected = torch.stack([table[2], table[2], table[1], table[1]])
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)


def test_a_dit_pipeline_gets_it_on_its_second_half(tmp_path: Path) -> None:
    vae = diffusers.AutoencoderKL(latent_channels=4, norm_num_groups=4, block_out_channels=(4,), sample_size=8)

    def call(model: nn.Module, watch: Any) -> None:
        for block in model.transformer_blocks:  # the pipeline's null class is number 1000
            block.norm1.emb.class_embedder.embedding_table = nn.Embedding(1001, 8)
        pipeline = diffusers.DiTPipeline(model, vae, diffusers.DDIMScheduler(num_train_timesteps=10))
        pipeline.set_progress_bar_config(disable=True)
        with use_stage_embedding(pipeline, tmp_path):
            watch()
            pipeline([1, 2], num_inference_steps=1, guidance_scale=3.0, output_type="np")

    rows, table = embedded_rows(BY_ID["dit"], tmp_path, call)
    expected = torch.stack([table[1], table[1], table[2], table[2]])
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", ["cond", "uncond", None])
def test_pipelines_that_call_twice_are_told_apart_by_their_cache_context(tmp_path: Path, context: str | None) -> None:
    family = BY_ID["flux"]
    model, table = trained(family, tmp_path, stage_dropout=0.1)
    inputs = family.inputs(0, 2)
    with torch.no_grad():
        plain = family.output(model, inputs)
        with use_stage_embedding(SimpleNamespace(transformer=model), tmp_path):
            if context is None:
                inside = family.output(model, inputs)
            else:
                with model.cache_context(context):
                    inside = family.output(model, inputs)
        bias = model.time_text_embed.timestep_embedder.linear_2.bias
        bias += (table[2] - table[1]) * (context == "uncond")
        torch.testing.assert_close(inside, family.output(model, inputs), rtol=1e-5, atol=1e-6)
        assert torch.equal(inside, plain) == (context != "uncond")


def test_lora_gets_the_row_that_its_file_cannot_hold_and_gives_it_back(tmp_path: Path) -> None:
    family = BY_ID["sd"]
    model = family.build().eval().requires_grad_(False)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    growth = GrowthScheduler(
        model,
        GrowthConfig(stage_embedding=True, stage_embedding_init="normal", order="interleaved", direction="unfreeze"),
    )
    growth.prepare(model, num_training_steps=4)
    inputs = family.inputs(7, 2)
    with torch.no_grad():
        trained_output = family.output(model, inputs)
        growth.save_stage_embedding(tmp_path)
        growth.stage_embedding.detach()
        bare = family.output(model, inputs)
        with use_stage_embedding(SimpleNamespace(unet=model), tmp_path):
            torch.testing.assert_close(family.output(model, inputs), trained_output, rtol=1e-5, atol=1e-6)
        assert torch.equal(family.output(model, inputs), bare)
        assert not torch.equal(bare, trained_output)


def test_the_average_is_what_is_saved(tmp_path: Path) -> None:
    model = BY_ID["sd"].build()
    growth = GrowthScheduler(model, GrowthConfig(ema_decay=0.9, order="interleaved", direction="unfreeze"))
    growth.prepare(model, num_training_steps=4)
    with torch.no_grad():
        growth.stage_embedding.average[0] = 5.0
    growth.save_stage_embedding(tmp_path)
    assert (read_embedding(tmp_path)[0]["stage"] == 5.0).all()


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    model, _ = trained(BY_ID["sd"], tmp_path)
    pipeline = SimpleNamespace(unet=model)
    with (
        pytest.raises(StateError, match="no stage_embedding.safetensors"),
        use_stage_embedding(pipeline, "nowhere"),
    ):
        pass
    with pytest.raises(StateError, match="no denoiser"), use_stage_embedding(SimpleNamespace(), tmp_path):
        pass
    other = SimpleNamespace(transformer=BY_ID["sd3"].build())
    with pytest.raises(StateError, match="enters at 'time_embedding.linear_2' with width 32.*another model"):
        with use_stage_embedding(other, tmp_path):
            pass
    with pytest.raises(StateError, match="unconditional='middle'.*first.*second"):
        with use_stage_embedding(pipeline, tmp_path, unconditional="middle"):
            pass
    save_file({"stage": torch.zeros(3)}, tmp_path / "stage_embedding.safetensors")
    with pytest.raises(StateError, match="header says nothing"), use_stage_embedding(pipeline, tmp_path):
        pass
