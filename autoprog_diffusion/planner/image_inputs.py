"""Inputs of denoisers of images, from their configurations."""

from __future__ import annotations

from typing import Any

import torch

from .shapes import PACKED, Builder, Inputs, Shape, image_of, side_of, text_of, timesteps_of


def unet_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of a text-to-image UNet."""
    inputs: Inputs = {
        "sample": image_of(config, shape),
        "timestep": timesteps_of(shape),
        "encoder_hidden_states": text_of(shape, 77, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(shape.batch, pooled),
            "time_ids": torch.ones(shape.batch, 6),
        }
    return inputs


def unet2d_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of a UNet without text."""
    return {
        "sample": image_of(config, shape),
        "timestep": timesteps_of(shape),
    }


def dit_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of DiT."""
    return {
        "hidden_states": image_of(config, shape),
        "timestep": timesteps_of(shape),
        "class_labels": timesteps_of(shape),
    }


def text_to_image_inputs(width: str, tokens: int) -> Builder:
    """Images and text, whose width is the configuration's `width`."""

    def build(config: Any, shape: Shape) -> Inputs:
        return {
            "hidden_states": image_of(config, shape),
            "encoder_hidden_states": text_of(shape, tokens, getattr(config, width)),
            "timestep": timesteps_of(shape),
        }

    return build


def sd3_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of SD3."""
    inputs = text_to_image_inputs("joint_attention_dim", 77 + 256)(config, shape)
    return {
        **inputs,
        "pooled_projections": torch.randn(shape.batch, config.pooled_projection_dim),
    }


def pixart_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of PixArt."""
    inputs = text_to_image_inputs("caption_channels", 300)(config, shape)
    sizes: Inputs = {"resolution": None, "aspect_ratio": None}
    if config.use_additional_conditions:
        sizes = {
            "resolution": torch.ones(shape.batch, 2),
            "aspect_ratio": torch.ones(shape.batch, 1),
        }
    return {**inputs, "added_cond_kwargs": sizes}


def lumina2_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of Lumina 2."""
    inputs = text_to_image_inputs("cap_feat_dim", 256)(config, shape)
    text = inputs["encoder_hidden_states"]
    mask = torch.ones(
        text.shape[:2],
        dtype=torch.bool,
    )
    return {
        **inputs,
        "timestep": torch.ones(shape.batch),
        "encoder_attention_mask": mask,
    }


def cogview4_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of CogView 4."""
    pairs = dict.fromkeys(
        ("original_size", "target_size", "crop_coords"),
        torch.ones(shape.batch, 2),
    )
    return {
        **text_to_image_inputs("text_embed_dim", 224)(config, shape),
        **pairs,
    }


def hunyuan_dit_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of HunyuanDiT."""
    side = side_of(config, shape) // config.patch_size
    angles = torch.ones(side * side, config.attention_head_dim)
    batch = shape.batch
    return {
        "hidden_states": image_of(config, shape),
        "timestep": torch.ones(batch),
        "encoder_hidden_states": torch.randn(batch, config.text_len, config.cross_attention_dim),
        "text_embedding_mask": torch.ones(batch, config.text_len),
        "encoder_hidden_states_t5": torch.randn(batch, config.text_len_t5, config.cross_attention_dim_t5),
        "text_embedding_mask_t5": torch.ones(batch, config.text_len_t5),
        "image_meta_size": torch.ones(batch, 6),
        "style": torch.zeros(batch, dtype=torch.long),
        "image_rotary_emb": (angles, angles),
    }


def tokens_inputs(config: Any, shape: Shape, text: int = 512) -> Inputs:
    """Packed latents and text."""
    side = side_of(config, shape) // PACKED
    return {
        "hidden_states": torch.randn(
            shape.batch,
            side * side,
            config.in_channels,
        ),
        "encoder_hidden_states": text_of(shape, text, config.joint_attention_dim),
        "timestep": torch.ones(shape.batch),
    }


def with_ids_inputs(config: Any, shape: Shape, axes: int) -> Inputs:
    """Packed latents and text, each token with its position."""
    inputs = tokens_inputs(config, shape)
    return {
        **inputs,
        "img_ids": torch.zeros(
            inputs["hidden_states"].shape[1],
            axes,
        ),
        "txt_ids": torch.zeros(
            inputs["encoder_hidden_states"].shape[1],
            axes,
        ),
    }


def flux_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of Flux."""
    inputs = with_ids_inputs(config, shape, axes=3)
    inputs["pooled_projections"] = torch.randn(shape.batch, config.pooled_projection_dim)
    if config.guidance_embeds:
        inputs["guidance"] = torch.ones(shape.batch)
    return inputs


def flux2_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of Flux 2."""
    return {
        **with_ids_inputs(config, shape, axes=4),
        "guidance": torch.ones(shape.batch),
    }


def packed_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of Chroma and Bria."""
    return with_ids_inputs(config, shape, axes=3)


def qwen_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of Qwen-Image."""
    side = side_of(config, shape) // PACKED
    return {
        **tokens_inputs(config, shape),
        "img_shapes": [(1, side, side)] * shape.batch,
    }


def z_image_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of Z-Image."""
    side = side_of(config, shape)
    text = shape.text or 512
    return {
        "x": [torch.randn(config.in_channels, 1, side, side) for _ in range(shape.batch)],
        "t": torch.ones(shape.batch),
        "cap_feats": [torch.randn(text, config.cap_feat_dim) for _ in range(shape.batch)],
    }
