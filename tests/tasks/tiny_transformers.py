"""Random class-conditional and flow-matching pipelines of a few kilobytes, and a folder of pictures by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)


SIZE = 32  # pixels: 8x8 latents, 16 tokens
CLASSES = ("lily", "rose", "tulip")
IMAGENET = {0: "tench, Tinca tinca", 1: "rose", 2: "goldfish, Carassius auratus"}


def build_vae(**config: Any) -> AutoencoderKL:
    """VAE factor 4, 4 channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        **config,
    )


def build_transformer(classes: int = 1000, learned_variance: bool = False) -> DiTTransformer2DModel:
    """Four blocks of width 32."""
    return DiTTransformer2DModel(
        sample_size=SIZE // 4,
        patch_size=2,
        in_channels=4,
        out_channels=8 if learned_variance else 4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=4,
        num_embeds_ada_norm=classes,
    )


def build_dit(classes: int = 3, learned_variance: bool = False, id2label: dict[int, str] | None = None) -> DiTPipeline:
    """A DiT pipeline; the settings of facebook/DiT but for the sizes."""
    pipeline = DiTPipeline(
        transformer=build_transformer(classes, learned_variance),
        vae=build_vae(),
        scheduler=DDIMScheduler(clip_sample=False, beta_schedule="linear"),  # type: ignore[arg-type]
        id2label=id2label,
    )
    if id2label is not None:  # DiTPipeline saves it only from a configuration that holds it
        pipeline.register_to_config(id2label={str(key): label for key, label in id2label.items()})
    return pipeline


def build_sd3() -> StableDiffusion3Pipeline:
    """SD3 without the third text encoder."""
    transformer = SD3Transformer2DModel(
        sample_size=SIZE // 4,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=build_vae(shift_factor=0.1, scaling_factor=1.5),
        text_encoder=CLIPTextModelWithProjection(clip_config()),
        text_encoder_2=CLIPTextModelWithProjection(clip_config()),
        text_encoder_3=None,  # type: ignore[arg-type]
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=None,  # type: ignore[arg-type]
    )


def build_flux(guidance: bool = True) -> FluxPipeline:
    """Flux of two double and two single blocks; guidance-distilled like Flux.1 dev."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    text = T5Config(vocab_size=30, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64
        ),
        vae=build_vae(shift_factor=0.1, scaling_factor=1.5),
        text_encoder=CLIPTextModel(clip_config()),
        text_encoder_2=T5EncoderModel(text),
        tokenizer=clip_tokenizer(),
        tokenizer_2=T5Tokenizer(vocab=[*pieces, *((letter, -3.0) for letter in ascii_lowercase)], extra_ids=0),
    )


def save(folder: Path, build: Callable[..., Any], **settings: Any) -> Path:
    """Build with a seed of its own, and save."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    build(**settings).save_pretrained(folder)
    torch.set_rng_state(state)
    return folder


def write_classes(folder: Path, names: Sequence[str] = CLASSES, count: int = 8) -> Path:
    """Save `count` pictures of every class in a sub-folder of its name."""
    random = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((40, SIZE), Image.Resampling.NEAREST).save(folder / name / f"{index}.png")
    return folder


def clip_config() -> CLIPTextConfig:
    """One layer of width 16."""
    return CLIPTextConfig(
        vocab_size=54,
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def clip_tokenizer() -> CLIPTokenizer:
    """Letters, 8 tokens."""
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for end in ("", "</w>"):
        vocab |= {letter + end: len(vocab) + index for index, letter in enumerate(ascii_lowercase)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=8)
