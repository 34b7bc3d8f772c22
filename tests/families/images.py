"""Image transformers whose text enters by cross-attention, or that have no text."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor

from .family import Family, grid, lists, noise, seeded, time


def _dit_inputs(seed: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(seed)(batch, 4, 8, 8),
        "timestep": time(seed, batch),
        "class_labels": time(seed, batch, 10),
    }


def text_to_image_inputs(seed: int, batch: int) -> dict[str, Any]:
    """What every text-to-image transformer takes."""
    draw = noise(seed)
    return {
        "hidden_states": draw(batch, 4, 8, 8),
        "encoder_hidden_states": draw(batch, 5, 8),
        "timestep": time(seed, batch),
    }


def _pixart_inputs(seed: int, batch: int) -> dict[str, Any]:
    return {**text_to_image_inputs(seed, batch), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}


def _pixart_alpha_inputs(seed: int, batch: int) -> dict[str, Any]:
    sizes = {"resolution": torch.tensor([[64.0, 48.0]]), "aspect_ratio": torch.tensor([[0.75]])}
    sizes = {name: value.repeat(batch, 1) for name, value in sizes.items()}
    return {**text_to_image_inputs(seed, batch), "added_cond_kwargs": sizes}


def _rotary(tokens: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    angles = (tokens[:, :1] + 0.1 * tokens[:, 1:]) * torch.arange(1.0, dim // 2 + 1).repeat_interleave(2) / dim
    return angles.cos(), angles.sin()


def _hunyuan_dit_inputs(seed: int, batch: int) -> dict[str, Any]:
    draw = noise(seed)
    mask = torch.ones(batch, 5)
    mask[:, -1] = 0.0  # a padded token, or the padding embedding would not train
    return {
        "hidden_states": draw(batch, 4, 8, 8),
        "timestep": time(seed, batch).float(),
        "encoder_hidden_states": draw(batch, 5, 8),
        "text_embedding_mask": mask,
        "encoder_hidden_states_t5": draw(batch, 5, 8),
        "text_embedding_mask_t5": mask,
        "image_meta_size": torch.tensor([[64.0, 64.0, 8.0, 8.0, 0.0, 0.0]]).repeat(batch, 1),
        "style": torch.zeros(batch, dtype=torch.long),
        "image_rotary_emb": _rotary(grid(4, 4), 8),
    }


def _lumina2_inputs(seed: int, batch: int) -> dict[str, Any]:
    inputs = text_to_image_inputs(seed, batch)
    mask = torch.ones(batch, 5, dtype=torch.bool)
    return {**inputs, "timestep": inputs["timestep"] / 1000, "encoder_attention_mask": mask}


PIXART = {
    "num_attention_heads": 2,
    "in_channels": 4,
    "out_channels": 8,  # the variance is learned
    "num_layers": 6,
    "sample_size": 8,
    "patch_size": 2,
    "caption_channels": 8,
}

ROWS = [
    Family(
        "dit",
        seeded(
            diffusers.DiTTransformer2DModel,
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=4,
            out_channels=8,  # the variance is learned
            num_layers=8,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=10,
        ),
        _dit_inputs,
        lists(transformer_blocks=8),
        points=8,
    ),
    Family(  # sigma, and alpha below 1024 pixels
        "pixart",
        seeded(diffusers.PixArtTransformer2DModel, attention_head_dim=4, cross_attention_dim=8, **PIXART),
        _pixart_inputs,
        lists(transformer_blocks=6),
        points=1,
    ),
    Family(  # alpha at 1024 pixels
        "pixart_alpha",
        seeded(
            diffusers.PixArtTransformer2DModel,
            attention_head_dim=6,
            cross_attention_dim=12,
            use_additional_conditions=True,
            **PIXART,
        ),
        _pixart_alpha_inputs,
        lists(transformer_blocks=6),
        points=1,
    ),
    Family(
        "sana",
        seeded(
            diffusers.SanaTransformer2DModel,
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=4,
            num_layers=6,
            num_cross_attention_heads=2,
            cross_attention_head_dim=4,
            cross_attention_dim=8,
            caption_channels=8,
            sample_size=8,
            patch_size=2,
        ),
        text_to_image_inputs,
        lists(transformer_blocks=6),
        points=1,
    ),
    Family(
        "hunyuan_dit",
        seeded(
            diffusers.HunyuanDiT2DModel,
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            patch_size=2,
            sample_size=8,
            hidden_size=16,
            num_layers=6,
            mlp_ratio=2.0,
            cross_attention_dim=8,
            cross_attention_dim_t5=8,
            pooled_projection_dim=4,
            text_len=5,
            text_len_t5=5,
        ),
        _hunyuan_dit_inputs,
        lists(blocks=6),
        points=1,
    ),
    Family(
        "lumina2",
        seeded(
            diffusers.Lumina2Transformer2DModel,
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=24,
            num_layers=4,
            num_refiner_layers=2,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=2,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(32, 32, 32),
            cap_feat_dim=8,
        ),
        _lumina2_inputs,
        lists(context_refiner=2, noise_refiner=2, layers=4),
        points=1,
    ),
]
