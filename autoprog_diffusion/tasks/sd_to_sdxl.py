"""A Stable Diffusion pipeline as a Stable Diffusion XL pipeline with the same function.

SDXL reads the states before a text encoder's last layer, without the final normalisation that Stable Diffusion's UNet
was trained with. It reads two encoders side by side, and adds sizes and pooled text to the timestep. The text encoder
therefore gets two more layers: the first puts the normalised states on a residual stream that was made negligible, the
second is not read. It is used twice. New weights of the UNet start at zero.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from autoprog_diffusion.growth.errors import GrowthError


# Factor that makes the residual stream negligible: smaller than the precision of the normalised states. A power of two
# scales without rounding.
SCALE = 2.0**-30
TIME_CHANNELS = 32


@torch.no_grad()
def sdxl_from_sd(pipeline: StableDiffusionPipeline) -> StableDiffusionXLPipeline:
    """An SDXL pipeline that draws what `pipeline` draws; VAE, tokenizer and scheduler are shared with it.

    New layers that do nothing yet are initialised from a seed of their own: every process and every resume gets the
    same ones.

    Raises:
        GrowthError: The text encoder's layers cannot express an identity.
    """
    source: Any = pipeline.text_encoder
    config = source.config
    if config.hidden_act not in ("gelu", "quick_gelu") or config.intermediate_size < 2 * config.hidden_size:
        raise GrowthError(
            f"a text encoder with hidden_act={config.hidden_act!r} and intermediate_size={config.intermediate_size} "
            f"cannot be converted: use gelu or quick_gelu, and at least {2 * config.hidden_size} units."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = _deeper(source, CLIPTextModel)
        second = _deeper(source, CLIPTextModelWithProjection)
        wider = _wider_unet(pipeline.unet, config.hidden_size)
    return StableDiffusionXLPipeline(
        vae=pipeline.vae,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=pipeline.tokenizer,
        tokenizer_2=copy.deepcopy(pipeline.tokenizer),
        unet=wider,
        scheduler=pipeline.scheduler,
        force_zeros_for_empty_prompt=False,  # Stable Diffusion guides away from the empty prompt, encoded
        add_watermarker=False,
    )


def _wider_unet(source: Any, width: int) -> UNet2DConditionModel:
    """The UNet with room for a second encoder, pooled text and sizes, which do nothing yet."""
    settings = dict(source.config) | {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_CHANNELS,
        "projection_class_embeddings_input_dim": width + 6 * TIME_CHANNELS,
        "cross_attention_dim": source.config.cross_attention_dim + width,
    }
    unet: Any = UNet2DConditionModel.from_config(settings)
    weights = source.state_dict()
    for name, parameter in unet.named_parameters():
        if name.startswith("add_embedding.linear_2"):
            parameter.zero_()
        elif not name.startswith("add_embedding."):
            old = weights[name]
            if old.shape != parameter.shape:
                # Keys and values read both encoders' tokens; the second one's do not count yet.
                old = F.pad(old, (0, parameter.shape[1] - old.shape[1]))
            parameter.copy_(old)
    return unet


def _deeper(source: Any, kind: Any) -> Any:
    """The text encoder with two more layers; the states before the last are the normalised ones of `source`."""
    config = source.config
    layers = config.num_hidden_layers
    width = config.hidden_size
    settings: dict[str, Any] = config.to_dict() | {
        "num_hidden_layers": layers + 2,
        "layer_norm_eps": config.layer_norm_eps * SCALE**2,
        "projection_dim": width,
    }
    encoder = kind(CLIPTextConfig(**settings)).eval()
    text = _plain(encoder)
    text.load_state_dict(_plain(source).state_dict(), strict=False)  # all but the two new layers
    text.embeddings.token_embedding.weight.mul_(SCALE)
    text.embeddings.position_embedding.weight.mul_(SCALE)
    # All that writes to the residual stream is scaled; layer norms undo it for all that reads it.
    for layer in text.encoder.layers[:layers]:
        for parameter in _writers(layer):
            parameter.mul_(SCALE)
    for layer in text.encoder.layers[layers:]:
        for parameter in (*_writers(layer), *layer.mlp.fc1.parameters()):
            parameter.zero_()
    norm = text.encoder.layers[layers]
    norm.layer_norm2.load_state_dict(text.final_layer_norm.state_dict())
    _make_identity(norm.mlp, width)
    if hasattr(encoder, "text_projection"):
        nn.init.eye_(encoder.text_projection.weight)
    return encoder


def _plain(encoder: Any) -> Any:
    """The transformer itself: classes and versions of transformers differ in where they keep it."""
    return getattr(encoder, "text_model", encoder)


def _writers(layer: Any) -> list[nn.Parameter]:
    """Parameters of the linear layers whose output is added to the residual stream."""
    return [*layer.self_attn.out_proj.parameters(), *layer.mlp.fc2.parameters()]


def _make_identity(mlp: Any, width: int) -> None:
    """Exact for GELU, sigmoid's and the true one: f(x) - f(-x) = x."""
    eye = torch.eye(width)
    both = torch.cat([eye, -eye])
    mlp.fc1.weight[: 2 * width] = both
    mlp.fc2.weight[:, : 2 * width] = both.T
