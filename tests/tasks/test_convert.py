"""A Stable Diffusion pipeline as SDXL: the same function, and a plain pipeline on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from transformers import CLIPTextModel

from autoprog_diffusion.growth import GrowthError
from autoprog_diffusion.tasks.sd_to_sdxl import sdxl_from_sd
from autoprog_diffusion.tasks.stable_diffusion import load_pipeline
from autoprog_diffusion.training.samples import sample_images


TINY_SD = Path(__file__).parents[2] / "recipes" / "assets" / "tiny_sd"
PROMPTS = ["red heart", "grinning cat face with smiling eyes", "", "zwx"]


@pytest.fixture(scope="module")
def bundled() -> Any:
    return load_pipeline(str(TINY_SD))


@torch.no_grad()
def states(pipeline: Any) -> torch.Tensor:
    length = pipeline.tokenizer.model_max_length
    ids = pipeline.tokenizer(PROMPTS, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return pipeline.text_encoder(ids.input_ids)[0]


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_both_encoders_give_the_unet_what_it_was_trained_on(bundled: Any, act: str) -> None:
    source: Any = bundled
    if act == "gelu":
        config = source.text_encoder.config.to_dict() | {"hidden_act": "gelu"}
        encoder = CLIPTextModel(source.text_encoder.config.from_dict(config)).eval()
        encoder.load_state_dict(source.text_encoder.state_dict())
        source = load_pipeline(str(TINY_SD))
        source.text_encoder = encoder
    expected = states(source)
    with torch.no_grad():
        tokens, _, pooled, _ = sdxl_from_sd(source).encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    assert tokens.shape == (4, 16, 256)
    for half in tokens.chunk(2, dim=-1):
        torch.testing.assert_close(half, expected, rtol=1e-6, atol=1e-6)
    assert pooled.shape == (4, 128)
    assert pooled.std(dim=0).min() > 0  # it says something about the text


def test_the_unet_computes_the_same_for_any_sizes(bundled: Any) -> None:
    converted: Any = sdxl_from_sd(bundled)
    text, noisy, times = states(bundled), torch.randn(4, 4, 16, 16), torch.randint(1000, (4,))
    with torch.no_grad():
        tokens, _, pooled, _ = converted.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
        added = {"text_embeds": pooled, "time_ids": 64 * torch.rand(4, 6)}
        ours = converted.unet.eval()(noisy, times, tokens, added_cond_kwargs=added)[0]
        theirs = bundled.unet.eval()(noisy, times, text)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


def test_the_pipeline_draws_the_same_and_is_plain_on_disk(bundled: Any, tmp_path: Path) -> None:
    sdxl_from_sd(bundled).save_pretrained(tmp_path)
    plain = StableDiffusionXLPipeline.from_pretrained(tmp_path)
    options: Any = {"size": 64, "steps": 2, "guidance": 3.0, "seed": 0}
    for ours, theirs in zip(sample_images(plain, PROMPTS, **options), sample_images(bundled, PROMPTS, **options)):
        assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1


def test_two_conversions_are_equal_bit_for_bit_whatever_was_drawn_between(bundled: Any) -> None:
    first = sdxl_from_sd(bundled)
    torch.rand(1)
    state = torch.get_rng_state()
    second = sdxl_from_sd(bundled)
    assert torch.equal(torch.get_rng_state(), state)
    for part in ("unet", "text_encoder", "text_encoder_2"):
        expected = getattr(second, part).state_dict()
        for name, tensor in getattr(first, part).state_dict().items():
            assert torch.equal(tensor, expected[name]), f"{part}.{name}"


def test_what_is_new_gets_a_gradient(bundled: Any) -> None:
    unet: Any = sdxl_from_sd(bundled).unet
    added = {"text_embeds": torch.randn(2, 128), "time_ids": 64 * torch.rand(2, 6)}
    unet(torch.randn(2, 4, 16, 16), 500, torch.randn(2, 16, 256), added_cond_kwargs=added)[
        0
    ].square().mean().backward()
    assert unet.add_embedding.linear_2.weight.grad.abs().max() > 0
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    assert attention.to_v.weight.grad[:, 128:].abs().max() > 0


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"intermediate_size": 255}], ids=str)
def test_an_encoder_without_room_for_an_identity_is_refused(bundled: Any, change: dict[str, Any]) -> None:
    config = bundled.text_encoder.config.to_dict() | change
    source: Any = load_pipeline(str(TINY_SD))
    source.text_encoder = CLIPTextModel(bundled.text_encoder.config.from_dict(config))
    with pytest.raises(
        GrowthError, match=rf"{next(iter(change))}={next(iter(change.values()))!r}.*cannot be converted"
    ):
        sdxl_from_sd(source)
