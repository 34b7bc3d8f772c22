"""Tiny random pipelines of videos."""

from __future__ import annotations

from typing import Any

import diffusers
import transformers

from . import pipelines
from .latest_pipelines import LISTED_CHAT, TEXT
from .more_pipelines import _qwen_tokenizer


def _cogvideox_parts(in_channels: int) -> dict[str, Any]:
    return {
        **pipelines._t5(),
        "transformer": diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=in_channels,
            out_channels=4,
            time_embed_dim=4,
            text_embed_dim=32,
            num_layers=4,
            sample_width=2,
            sample_height=2,
            sample_frames=9,
            patch_size=2,
            max_text_seq_length=16,
        ),
        "vae": diffusers.AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(4, 4, 4, 4),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
        ),
        "scheduler": diffusers.CogVideoXDPMScheduler(),
    }


def cogvideox() -> Any:
    return diffusers.CogVideoXPipeline(**_cogvideox_parts(in_channels=4))


def cogvideox_image_to_video() -> Any:
    return diffusers.CogVideoXImageToVideoPipeline(**_cogvideox_parts(in_channels=8))


class NoChecker:
    """In place of the safety checker, which is a package of its own."""


def cosmos() -> Any:
    text = {
        **TEXT,
        "num_hidden_layers": 2,
        "vocab_size": 300,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    }
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    tokenizer = _qwen_tokenizer()
    tokenizer.chat_template = LISTED_CHAT
    pipeline = diffusers.Cosmos2_5_PredictBasePipeline(
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        transformer=diffusers.CosmosTransformer3DModel(
            in_channels=4 + 1,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=4,
            mlp_ratio=2,
            text_embed_dim=16,
            adaln_lora_dim=4,
            max_size=(4, 32, 32),
            extra_pos_embed_type=None,
            use_crossattn_projection=True,
            crossattn_proj_in_channels=2 * 16,
            encoder_hidden_states_channels=16,
        ),
        vae=diffusers.AutoencoderKLWan(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        scheduler=diffusers.UniPCMultistepScheduler(),
        safety_checker=NoChecker(),
    )
    pipeline.register_modules(safety_checker=None)
    return pipeline
