"""The bundled transformers: assembled around the parts of tiny_sd, and plain once saved."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from transformers import CLIPTextModel

from autoprog_diffusion.data.emoji import group_names
from autoprog_diffusion.tasks.class_conditional import set_classes
from autoprog_diffusion.tasks.tiny_pipelines import empty_text_encoder, load_tiny_dit, load_tiny_flow, text_encoders


ASSETS = Path(__file__).parents[2] / "recipes" / "assets"


def test_the_two_text_encoders_give_the_states_after_each_layer_of_tiny_sd_s() -> None:
    source = CLIPTextModel.from_pretrained(ASSETS / "tiny_sd" / "text_encoder").eval()
    tokens = torch.randint(0, 1500, (2, 16), generator=torch.Generator().manual_seed(0))
    tokens[:, -1] = source.config.eos_token_id
    with torch.no_grad():
        literal = source(tokens, output_hidden_states=True)
        first, second = (encoder(tokens, output_hidden_states=True) for encoder in text_encoders(ASSETS))
    torch.testing.assert_close(first.hidden_states[-2], literal.hidden_states[1])
    torch.testing.assert_close(second.hidden_states[-2], literal.hidden_states[2])
    for ours in (first, second):
        torch.testing.assert_close(ours.text_embeds, literal.pooler_output)


def test_the_empty_text_encoder_gives_what_the_pipeline_takes_without_one() -> None:
    states = empty_text_encoder(24)(torch.tensor([[2, 1, 0, 0]]))[0]
    assert states.shape == (1, 4, 24)
    assert not states.any()
    again = empty_text_encoder(24).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in empty_text_encoder(24).state_dict().items())


def test_the_bundled_dit_knows_its_classes_and_takes_new_ones(tmp_path: Path) -> None:
    pipeline = load_tiny_dit(ASSETS)
    assert sorted(pipeline.labels, key=pipeline.labels.__getitem__) == group_names("pretrained")
    assert pipeline.transformer.dtype == torch.float32
    assert set_classes(pipeline, ["face", "bird"]) == {"face": 0, "bird": 1}
    pipeline.save_pretrained(tmp_path)
    again = DiTPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again([0], num_inference_steps=1).images[0].size == (64, 64)


def test_the_bundled_flow_pipeline_loads_without_arguments_once_saved(tmp_path: Path) -> None:
    pipeline = load_tiny_flow(ASSETS)
    pipeline.save_pretrained(tmp_path)
    again = StableDiffusion3Pipeline.from_pretrained(tmp_path)
    images = []
    for one in (pipeline, again):
        one.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images += one("red heart", height=64, width=64, num_inference_steps=2, generator=generator).images
    assert images[0].tobytes() == images[1].tobytes()
