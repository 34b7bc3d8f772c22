"""The stage embedding: where it enters, how rows start and average, and what is refused."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.adapters import StageEmbedding, timestep_embedders
from autoprog_diffusion.growth import OrderError, UnitError

from ..settings import BY_ID


def test_only_the_timestep_is_embedded() -> None:
    assert timestep_embedders(BY_ID["sdxl"].build()) == ["time_embedding.linear_2"]
    assert timestep_embedders(BY_ID["flux"].build()) == ["time_text_embed.timestep_embedder.linear_2"]
    assert timestep_embedders(BY_ID["pixart"].build()) == ["adaln_single.emb.timestep_embedder.linear_2"]
    names = [f"transformer_blocks.{index}.norm1.emb.timestep_embedder.linear_2" for index in range(8)]
    assert timestep_embedders(BY_ID["dit"].build()) == names


def tiny_unet(**settings: Any) -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        **settings,
    )


def test_an_embedder_without_a_bias_is_refused_or_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_unet()
    model.time_embedding.linear_2.bias = None
    for settings in ({"stage_embedding": True}, {"stage_dropout": 0.1}):
        with pytest.raises(UnitError, match="time_embedding.linear_2 has no bias.*stage_embedding=False"):
            GrowthScheduler(model, GrowthConfig(**settings))
    with caplog.at_level("WARNING"):
        assert GrowthScheduler(model, GrowthConfig()).stage_embedding is None
    assert "no stage embedding: time_embedding.linear_2 has no bias" in caplog.text


def test_an_activation_behind_the_embedder_is_folded_through() -> None:
    model = tiny_unet(timestep_post_act="silu").eval()
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([5, 700]), torch.randn(2, 3, 8))
    growth = GrowthScheduler(
        model, GrowthConfig(stage_embedding_init="normal", order="interleaved", direction="unfreeze")
    )
    growth.prepare(model, num_training_steps=4)
    with torch.no_grad():
        before = model(*inputs).sample
        growth.fold(model)
        torch.testing.assert_close(model(*inputs).sample, before, rtol=1e-5, atol=1e-6)


def test_class_embedders_of_the_same_class_are_left_alone() -> None:
    assert timestep_embedders(tiny_unet(class_embed_type="timestep")) == ["time_embedding.linear_2"]


def test_rows_and_their_start() -> None:
    assert StageEmbedding(["x"], 3, 5).table.shape == (3, 5)
    assert StageEmbedding(["x"], 3, 5, dropout=0.1).table.shape == (4, 5)
    assert not StageEmbedding(["x"], 3, 5, init="zero").table.any()
    state = torch.get_rng_state()
    table = StageEmbedding(["x"], 4, 4096, init="normal").table
    assert torch.equal(torch.get_rng_state(), state)  # the user's random numbers are not spent
    assert table.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(StageEmbedding(["x"], 4, 4096, init="normal").table, table)  # equal on every rank


def test_carry_starts_a_row_from_the_trained_one() -> None:
    embedding = StageEmbedding(["x"], 3, 2, init="carry", ema_decay=0.5)
    with torch.no_grad():
        embedding.table[0] = 3.0
        embedding.average[0] = 2.0
    embedding.enter(1)
    assert embedding.table[1].tolist() == [3.0, 3.0]
    assert embedding.average[1].tolist() == [2.0, 2.0]
    with torch.no_grad():
        embedding.table[1] = 7.0
    embedding.enter(1, fresh=False)  # resumed, not entered
    assert embedding.table[1].tolist() == [7.0, 7.0]
    zero = StageEmbedding(["x"], 3, 2)
    with torch.no_grad():
        zero.table[0] = 3.0
    zero.enter(1)
    assert not zero.table[1].any()


def test_the_average_moves_as_diffusers_moves_it() -> None:
    from diffusers.training_utils import EMAModel

    embedding = StageEmbedding(["x"], 2, 3, ema_decay=0.8)
    twin = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        twin.weight.zero_()
    ema = EMAModel(twin.parameters(), decay=0.8)
    for step in range(1, 60):
        value = torch.randn(2, 3)
        with torch.no_grad():
            twin.weight.copy_(value)
            embedding.table.copy_(value)
        ema.step(twin.parameters())
        embedding.update_average(step)
        torch.testing.assert_close(embedding.average, ema.shadow_params[0], rtol=1e-5, atol=1e-6)


def test_it_attaches_once_and_detaches_without_a_trace() -> None:
    model = BY_ID["dit"].build()
    embedding = StageEmbedding(timestep_embedders(model), 2, 8)
    embedding.attach(model)
    with pytest.raises(OrderError, match="attached already"):
        embedding.attach(model)
    embedding.detach()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    embedding.attach(model)


def test_half_precision_models_keep_a_float32_table() -> None:
    family = BY_ID["unet2d"]
    model = family.build().to(torch.bfloat16)
    growth = GrowthScheduler(
        model, GrowthConfig(stage_embedding_init="normal", order="interleaved", direction="unfreeze")
    )
    growth.prepare(model, num_training_steps=4)
    inputs = {**family.inputs(0, 2), "sample": family.inputs(0, 2)["sample"].bfloat16()}
    output = model(**inputs, return_dict=False)[0]
    output.float().square().mean().backward()
    assert output.dtype == torch.bfloat16
    assert growth.stage_embedding.table.dtype == growth.stage_embedding.table.grad.dtype == torch.float32


def test_a_model_stays_vanilla_for_emas_and_checkpoints() -> None:
    model = BY_ID["sd"].build()
    before = list(model.state_dict())
    growth = GrowthScheduler(model, GrowthConfig(order="interleaved", direction="unfreeze"))
    growth.prepare(model, num_training_steps=4)
    assert list(model.state_dict()) == before


SUFFIX_ON_CHANNELS_LAST = """
import torch
from diffusers import UNet2DModel
from autoprog_diffusion import GrowthConfig, GrowthScheduler
torch.set_num_threads(1)
for layout in (torch.contiguous_format, torch.channels_last):
    model = UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, attention_head_dim=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).to(memory_format=layout)
    config = GrowthConfig(num_stages=7, min_trainable=1 / 7, order="suffix", direction="unfreeze")
    growth = GrowthScheduler(model, config)
    growth.prepare(model, num_training_steps=7)
    for step in range(7):
        sample = torch.randn(2, 3, 8, 8).to(memory_format=layout)
        model(sample, torch.tensor([3, 4]), return_dict=False)[0].square().mean().backward()
        growth.step()
    print(layout)
"""


def test_the_cut_of_a_suffix_stage_does_not_crash_torch(tmp_path: Path) -> None:
    """In a process of its own: torch 2.13's CPU GroupNorm segfaults on channels-last input that needs no gradient."""
    command = [sys.executable, "-c", SUFFIX_ON_CHANNELS_LAST]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert (done.returncode, done.stdout.split()) == (0, ["torch.contiguous_format", "torch.channels_last"]), (
        done.stderr
    )


def test_folded_holds_inside_its_block_only() -> None:
    family = BY_ID["sd"]
    model = family.build().eval()
    growth = GrowthScheduler(
        model, GrowthConfig(stage_embedding_init="normal", ema_decay=0.9, order="interleaved", direction="unfreeze")
    )
    growth.prepare(model, num_training_steps=4)
    inputs, bias = family.inputs(0, 2), model.time_embedding.linear_2.bias
    old = bias.detach().clone()
    with torch.no_grad():
        before = family.output(model, inputs)
        with contextlib.suppress(KeyError), growth.folded(model):
            torch.testing.assert_close(family.output(model, inputs), before, rtol=1e-5, atol=1e-6)
            assert not torch.equal(bias, old)
            raise KeyError
        assert torch.equal(bias, old)
        assert torch.equal(family.output(model, inputs), before)
    growth.fold(model)
    with pytest.raises(OrderError, match="nothing to fold"), growth.folded(model):
        pass
