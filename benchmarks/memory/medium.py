"""Six denoisers that train on a CPU in seconds, and whose activations outweigh what the interpreter holds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

import diffusers
import models
from published import unet_inputs


@dataclass(frozen=True)
class Medium:
    """A denoiser and its inputs.

    Attributes:
        cls: Its class in Diffusers.
        config: Its configuration.
        inputs: Keyword arguments of one forward pass, of its configuration.
    """

    cls: str
    config: dict[str, Any]
    inputs: Callable[[Any], dict[str, Any]]

    def build(self) -> nn.Module:
        """The model, with random weights."""
        return getattr(diffusers, self.cls)(**self.config)


def packed_inputs(config: Any) -> dict[str, Any]:
    """Of Flux: 1,024 tokens of an image, 128 of text."""
    return {
        "hidden_states": torch.randn(1, 1024, config.in_channels),
        "encoder_hidden_states": torch.randn(1, 128, config.joint_attention_dim),
        "pooled_projections": torch.randn(1, config.pooled_projection_dim),
        "timestep": torch.ones(1),
        "guidance": torch.ones(1),
        "img_ids": torch.zeros(1024, 3),
        "txt_ids": torch.zeros(128, 3),
    }


def z_image_inputs(config: Any) -> dict[str, Any]:
    return {
        "x": [torch.randn(config.in_channels, 1, 64, 64)],
        "t": torch.ones(1),
        "cap_feats": [torch.randn(128, config.cap_feat_dim)],
    }


def qwen_inputs(config: Any) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 1024, config.in_channels),
        "encoder_hidden_states": torch.randn(1, 128, config.joint_attention_dim),
        "timestep": torch.ones(1),
        "img_shapes": [(1, 32, 32)],
    }


MEDIUM = {
    "UNet": Medium(
        "UNet2DConditionModel",
        {"sample_size": 64, "block_out_channels": (64, 128, 256, 256), "cross_attention_dim": 256},
        unet_inputs,
    ),
    "DiT": Medium(
        "DiTTransformer2DModel",
        {"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 12, "sample_size": 64, "out_channels": 8},
        models.dit_inputs,
    ),
    "SD3": Medium(
        "SD3Transformer2DModel",
        {
            "sample_size": 64,
            "num_layers": 8,
            "num_attention_heads": 6,
            "joint_attention_dim": 512,
            "caption_projection_dim": 384,
            "pooled_projection_dim": 256,
            "pos_embed_max_size": 32,
        },
        models.sd3_inputs,
    ),
    "Flux": Medium(
        "FluxTransformer2DModel",
        {
            "num_layers": 3,
            "num_single_layers": 6,
            "num_attention_heads": 3,
            "joint_attention_dim": 512,
            "pooled_projection_dim": 256,
            "guidance_embeds": True,
        },
        packed_inputs,
    ),
    "Z-Image": Medium(
        "ZImageTransformer2DModel",
        {
            "dim": 384,
            "n_layers": 6,
            "n_refiner_layers": 1,
            "n_heads": 3,
            "n_kv_heads": 3,
            "cap_feat_dim": 512,
        },
        z_image_inputs,
    ),
    "Qwen-Image": Medium(
        "QwenImageTransformer2DModel",
        {"num_layers": 6, "num_attention_heads": 3, "joint_attention_dim": 512},
        qwen_inputs,
    ),
}
