"""The bundled tiny transformers: their folders hold the denoiser alone, the rest comes from `tiny_sd`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)


LABELS_FILE = "id2label.json"


def load_tiny_dit(assets: Path) -> DiTPipeline:
    """The class-conditional pipeline of `tiny_dit`, in float32; its classes are in `pipeline.labels`."""
    folder = assets / "tiny_dit"
    id2label = json.loads((folder / LABELS_FILE).read_text(encoding="utf-8"))
    scheduler: Any = DDIMScheduler.from_pretrained(folder / "scheduler")
    return DiTPipeline(
        transformer=DiTTransformer2DModel.from_pretrained(folder / "transformer"),
        vae=_load_vae(assets),
        scheduler=scheduler,
        id2label={int(key): name for key, name in id2label.items()},
    )


def load_tiny_flow(assets: Path) -> StableDiffusion3Pipeline:
    """The text-to-image pipeline of `tiny_flow`, in float32."""
    folder = assets / "tiny_flow"
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
    return flow_pipeline(SD3Transformer2DModel.from_pretrained(folder / "transformer"), scheduler, assets)


def flow_pipeline(
    transformer: SD3Transformer2DModel, scheduler: FlowMatchEulerDiscreteScheduler, assets: Path
) -> StableDiffusion3Pipeline:
    """A StableDiffusion3Pipeline around the VAE, tokenizer and text encoder of `tiny_sd`; its T5 encoder is empty."""
    vae = _load_vae(assets)
    vae.register_to_config(shift_factor=0.0)  # SD3's pipeline adds it; None is an error there
    first, second = text_encoders(assets)
    folder = assets / "tiny_sd" / "tokenizer"
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=scheduler,
        vae=vae,
        text_encoder=first,
        text_encoder_2=second,
        text_encoder_3=empty_text_encoder(transformer.context_embedder.in_features),
        tokenizer=CLIPTokenizer.from_pretrained(folder),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder),
        tokenizer_3=T5Tokenizer(vocab=[(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")], extra_ids=0),
    )


def empty_text_encoder(width: int) -> T5EncoderModel:
    """A T5 encoder of zeros, which the pipeline itself puts where the third encoder is missing.

    It is there so that what was saved loads without arguments: Diffusers cannot load an SD3 pipeline without it
    unless told so.
    """
    config = T5Config(vocab_size=3, d_model=width, d_kv=1, d_ff=1, num_layers=1, num_heads=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # saved with the pipeline: the same in every run
        encoder = T5EncoderModel(config)
    nn.init.zeros_(encoder.encoder.final_layer_norm.weight)
    return encoder.eval()


def text_encoders(assets: Path) -> tuple[CLIPTextModelWithProjection, CLIPTextModelWithProjection]:
    """The text encoder of `tiny_sd`, twice, with an identity as its projection.

    SD3 reads the states before the last layer. The second encoder ends in one layer more that does nothing, so the two
    give the states after the first layer and after both.
    """
    source = CLIPTextModel.from_pretrained(assets / "tiny_sd" / "text_encoder")
    layers = source.config.num_hidden_layers
    return _with_projection(source, layers), _with_projection(source, layers + 1)


def _with_projection(source: CLIPTextModel, layers: int) -> CLIPTextModelWithProjection:
    settings: dict[str, Any] = {**source.config.to_dict(), "num_hidden_layers": layers}
    encoder = CLIPTextModelWithProjection(CLIPTextConfig(**settings))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()  # a residual layer of zeros adds nothing
        # Versions of transformers differ in where a CLIPTextModel keeps its layers.
        encoder.text_model.load_state_dict(getattr(source, "text_model", source).state_dict(), strict=False)
        nn.init.eye_(encoder.text_projection.weight)
    return encoder.eval()


def _load_vae(assets: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(assets / "tiny_sd" / "vae")
