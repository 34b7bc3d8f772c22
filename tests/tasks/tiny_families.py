"""Random pipelines of a few kilobytes of the families whose text encoders are language models, and of Wan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

from .tiny_transformers import build_vae


WIDTH = 16  # of the text
MEAN, STD = [0.1, -0.2, 0.3, -0.4], [0.5, 1.0, 1.5, 2.0]
LETTERS = [chr(code) for code in range(33, 127)]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}: {{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a{% endif %}{% if enable_thinking is false %}!{% endif %}"
)
LANGUAGE = {
    "hidden_size": WIDTH,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 2048,
}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}


def build_flux2(**config: Any) -> Any:
    """Flux.2 Klein: latents of 4 channels, packed to 16."""
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
    )
    vae.bn.running_mean.copy_(torch.linspace(-1, 1, 16))
    vae.bn.running_var.copy_(torch.linspace(0.5, 2, 16))
    return diffusers.Flux2KleinPipeline(
        transformer=diffusers.Flux2Transformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            joint_attention_dim=3 * WIDTH,
            timestep_guidance_channels=16,
            axes_dims_rope=(2, 2, 2, 2),
            **HEADS,
            **{"guidance_embeds": False, **config},
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=qwen3(layers=27),
        tokenizer=qwen_tokenizer(),
    )


def build_qwen_image(**config: Any) -> Any:
    """Qwen-Image: latents of 4 channels."""
    config = {"guidance_embeds": False, **config}
    text = {**LANGUAGE, "num_hidden_layers": 1, "vocab_size": 200}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": WIDTH}
    language = Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return diffusers.QwenImagePipeline(
        transformer=diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=4,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 2, 2),
            **HEADS,
            **config,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64
        ),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=MEAN,
            latents_std=STD,
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(language),
        tokenizer=qwen_tokenizer(),
    )


def build_z_image() -> Any:
    """Z-Image: a static shift, as of the turbo model."""
    return diffusers.ZImagePipeline(
        transformer=diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=16,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=WIDTH,
            axes_dims=[4, 2, 2],
            axes_lens=[512, 32, 32],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=build_vae(shift_factor=0.1, scaling_factor=1.5),
        text_encoder=qwen3(layers=2),
        tokenizer=qwen_tokenizer(),
    )


def build_sana() -> Any:
    """Sana with the scheduler that its published pipelines have."""
    blocks = {"block_types": ("ResBlock", "EfficientViTBlock"), "block_out_channels": (8, 8)}
    blocks |= {"layers_per_block": (1, 1), "qkv_multiscales": ((), (5,))}
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        scaling_factor=0.4,
        **{f"{part}_{name}": value for part in ("encoder", "decoder") for name, value in blocks.items()},
    )
    return diffusers.SanaPipeline(
        transformer=diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=4,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=WIDTH,
            sample_size=16,
            patch_size=1,
            timestep_scale=0.5,
            **HEADS,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
        vae=vae,
        text_encoder=gemma(),
        tokenizer=gemma_tokenizer(),
    )


def build_lumina2() -> Any:
    """Lumina-Image 2.0; its pipeline knows VAEs of factor 8 only."""
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        shift_factor=0.1,
        scaling_factor=1.5,
    )
    return diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=4,
            patch_size=2,
            in_channels=4,
            hidden_size=24,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=2,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(512, 32, 32),
            cap_feat_dim=WIDTH,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=vae,
        text_encoder=gemma(),
        tokenizer=gemma_tokenizer(),
    )


def build_pixart(learned_variance: bool = True) -> Any:
    """PixArt-Sigma with the scheduler that its published pipelines have."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    text = T5Config(vocab_size=30, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return diffusers.PixArtSigmaPipeline(
        transformer=diffusers.PixArtTransformer2DModel(
            in_channels=4,
            out_channels=8 if learned_variance else 4,
            num_layers=4,
            cross_attention_dim=16,
            caption_channels=WIDTH,
            sample_size=8,
            patch_size=2,
            **HEADS,
        ),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        vae=build_vae(scaling_factor=1.5),
        text_encoder=T5EncoderModel(text),
        tokenizer=T5Tokenizer(vocab=[*pieces, *((letter, -3.0) for letter in LETTERS[64:90])], extra_ids=0),
    )


def build_wan(**config: Any) -> Any:
    """Wan 2.1 with the scheduler that its published pipelines have; four frames are one latent."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    text = UMT5Config(vocab_size=30, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return diffusers.WanPipeline(
        transformer=diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2),
            in_channels=4,
            out_channels=4,
            text_dim=WIDTH,
            freq_dim=16,
            ffn_dim=32,
            num_layers=4,
            rope_max_seq_len=32,
            num_attention_heads=2,
            attention_head_dim=12,
        ),
        scheduler=diffusers.UniPCMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
        ),
        vae=diffusers.AutoencoderKLWan(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            latents_mean=MEAN,
            latents_std=STD,
            scale_factor_spatial=4,
            scale_factor_temporal=4,
        ),
        text_encoder=UMT5EncoderModel(text),
        tokenizer=T5Tokenizer(vocab=[*pieces, *((letter, -3.0) for letter in LETTERS[64:90])], extra_ids=0),
        **config,
    )


def qwen3(layers: int) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(Qwen3Config(**LANGUAGE, num_hidden_layers=layers, vocab_size=200))


def gemma() -> Gemma2Model:
    return Gemma2Model(Gemma2Config(**LANGUAGE, num_hidden_layers=2, vocab_size=200, query_pre_attn_scalar=8))


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A token a letter, and a template for questions."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *LETTERS, "\u0120", "\u010a"]
    vocab = {name: index for index, name in enumerate(names)}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], additional_special_tokens=names[1:3])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def gemma_tokenizer() -> GemmaTokenizer:
    """A token a letter."""
    names = ["<pad>", "<eos>", "<bos>", "<unk>", *LETTERS, "\u2581"]
    return GemmaTokenizer(vocab={name: index for index, name in enumerate(names)}, merges=[])


BUILD: dict[str, Callable[..., Any]] = {
    "flux2": build_flux2,
    "qwen_image": build_qwen_image,
    "z_image": build_z_image,
    "sana": build_sana,
    "lumina2": build_lumina2,
    "wan": build_wan,
}
# As those above, but trained by denoising.
BUILD_ALL = {**BUILD, "pixart": build_pixart}
