"""`tiny_flow`: an SD3 transformer trained by rectified flow on all Twemoji and their captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cached_latents import ASSETS, Data, stratified, zero_output
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from emoji_images import SIZE, load_images
from pictures import sample, save_image
from sd_models import MAX_TOKENS
from torch import Tensor, nn

from autoprog_diffusion.tasks.tiny_pipelines import flow_pipeline


def build_flow(width: int = 128, layers: int = 6) -> SD3Transformer2DModel:
    """Builds an SD3 transformer of 3.5 M parameters: 64 image and 16 text tokens of width 128, 6 joint blocks."""
    model = SD3Transformer2DModel(
        sample_size=SIZE // 4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=layers,
        attention_head_dim=32,
        num_attention_heads=width // 32,
        joint_attention_dim=256,  # both text encoders side by side
        caption_projection_dim=width,
        pooled_projection_dim=256,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    for block in model.transformer_blocks:
        zero_output(block.norm1.linear, block.norm1_context.linear)
    zero_output(model.norm_out.linear, model.proj_out)
    return model


def flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Rectified flow without a shift."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0)


def flow_data() -> Data:
    """All Twemoji; caption embeddings (N + 1, 16, 256) and pooled ones (N + 1, 256), the empty caption last."""
    images, captions = load_images("twemoji")
    pipeline = flow_pipeline(build_flow(), flow_scheduler(), ASSETS)
    with torch.no_grad():
        tokens, _, pooled, _ = pipeline.encode_prompt(
            [*captions, ""], None, None, max_sequence_length=MAX_TOKENS, do_classifier_free_guidance=False
        )
    return Data(images, (torch.arange(len(captions)), tokens[:, :MAX_TOKENS], pooled), captions)


def flow_loss(model: nn.Module, latents: Tensor, rows: Tensor, tokens: Tensor, pooled: Tensor, *, fill: int) -> Tensor:
    """Returns the rectified-flow loss at logit-normal times, captions dropped for 10 %.

    ``fill`` zero tokens follow the caption: of the empty third text encoder the pipeline takes 256 by itself.
    """
    rows = torch.where(torch.rand(len(rows)) < 0.1, len(tokens) - 1, rows)
    text = F.pad(tokens[rows], (0, 0, 0, fill))
    noise, sigmas = torch.randn_like(latents), torch.sigmoid(torch.special.ndtri(stratified(len(latents))))
    mix = sigmas.view(-1, 1, 1, 1)
    noisy = (1 - mix) * latents + mix * noise
    output = model(
        noisy, timestep=1000 * sigmas, encoder_hidden_states=text, pooled_projections=pooled[rows], return_dict=False
    )[0]
    return F.mse_loss(output.float(), noise - latents)


class QuickPipeline:
    """A StableDiffusion3Pipeline drawn with 16 tokens of its empty third text encoder instead of 256."""

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        self.pipeline = pipeline

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        self.pipeline.set_progress_bar_config(**kwargs)

    def __call__(self, prompts: list[str], **kwargs: Any) -> Any:
        return self.pipeline(prompts, max_sequence_length=MAX_TOKENS, **kwargs)


def flow_sheet(
    model: SD3Transformer2DModel, prompts: tuple[str, ...], path: Path, quick: bool = True, columns: int = 8
) -> None:
    """Draws the prompts, guidance 3, magnified twice."""
    pipeline: Any = flow_pipeline(model, flow_scheduler(), ASSETS)
    images = sample(QuickPipeline(pipeline) if quick else pipeline, list(prompts))
    rows = [np.concatenate(list(images[i : i + columns]), axis=1) for i in range(0, len(images), columns)]
    save_image(np.concatenate(rows), path)
