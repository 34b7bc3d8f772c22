"""Eight denoisers as they were published, and the inputs of one training step of one image of their own resolution.

Configurations are those of the published checkpoints, written by hand where Diffusers' default is another. Text is as
long as the pipeline of each model makes it by default, or 512 tokens where a pipeline only cuts it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

import models
from models import Published


TEXT = 512
# Parameters of the published checkpoints.
SIZES = {
    "SD1.5": 859_520_964,
    "SDXL": 2_567_463_684,
    "SD3 medium": 2_028_328_000,
    "SD3.5 large": 8_056_627_520,
    "Flux dev": 11_901_408_320,
    "Z-Image": 6_154_908_736,
    "Qwen-Image": 20_430_401_088,
    "DiT-XL/2": 749_826_464,
}


def unet_inputs(config: Any) -> dict[str, Any]:
    """Of a UNet whose only condition is text."""
    return {
        "sample": torch.randn(1, config.in_channels, config.sample_size, config.sample_size),
        "timestep": torch.ones(1, dtype=torch.long),
        "encoder_hidden_states": torch.randn(1, 77, config.cross_attention_dim),
    }


def sd3_inputs(config: Any) -> dict[str, Any]:
    """77 tokens of CLIP and 256 of T5."""
    inputs = models.sd3_inputs(config)
    return {**inputs, "encoder_hidden_states": torch.randn(1, 77 + 256, config.joint_attention_dim)}


def z_image_inputs(config: Any) -> dict[str, Any]:
    """Lists of one image and one text."""
    side = 128 if config.dim == Z_IMAGE.config["dim"] else 8
    return {
        "x": [torch.randn(config.in_channels, 1, side, side)],
        "t": torch.ones(1),
        "cap_feats": [torch.randn(TEXT, config.cap_feat_dim)],
    }


def qwen_inputs(config: Any) -> dict[str, Any]:
    """Packed latents of 1328 pixels, 16 of them a token."""
    side = 83 if config.num_layers == QWEN.config["num_layers"] else 4
    return {
        "hidden_states": torch.randn(1, side * side, config.in_channels),
        "encoder_hidden_states": torch.randn(1, TEXT, config.joint_attention_dim),
        "timestep": torch.ones(1),
        "img_shapes": [(1, side, side)],
    }


def published(name: str, cls: str, pixels: int, inputs: Callable[[Any], dict[str, Any]], **config: Any) -> Published:
    """A model of which only the published size is needed here."""
    return Published(name, cls, config=config, tiny={}, pixels=pixels, batch=1, wrap=(), inputs=inputs)


SD15 = published("SD1.5", "UNet2DConditionModel", 512, unet_inputs, sample_size=64, cross_attention_dim=768)
SDXL = replace(models.SDXL, batch=1)
SD3 = replace(models.SD3, batch=1, inputs=sd3_inputs)
SD35 = published(
    "SD3.5 large",
    "SD3Transformer2DModel",
    1024,
    sd3_inputs,
    sample_size=128,
    num_layers=38,
    num_attention_heads=38,
    joint_attention_dim=4096,
    caption_projection_dim=2432,
    pooled_projection_dim=2048,
    out_channels=16,
    pos_embed_max_size=192,
    qk_norm="rms_norm",
)
FLUX = models.FLUX
Z_IMAGE = published(
    "Z-Image",
    "ZImageTransformer2DModel",
    1024,
    z_image_inputs,
    dim=3840,
    n_layers=30,
    n_refiner_layers=2,
    n_heads=30,
    n_kv_heads=30,
    cap_feat_dim=2560,
    axes_dims=[32, 48, 48],
    axes_lens=[1024, 512, 512],
)
QWEN = published(
    "Qwen-Image",
    "QwenImageTransformer2DModel",
    1328,
    qwen_inputs,
    num_layers=60,
    num_attention_heads=24,
    attention_head_dim=128,
    joint_attention_dim=3584,
    axes_dims_rope=(16, 56, 56),
)
DIT = replace(models.DIT, batch=1)
MODELS = {one.name: one for one in (SD15, SDXL, SD3, SD35, FLUX, Z_IMAGE, QWEN, DIT)}
