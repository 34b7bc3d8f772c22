"""Inputs of denoisers of videos, from their configurations."""

from __future__ import annotations

from typing import Any

import torch

from .shapes import Builder, Inputs, Shape, default_side, side_of, text_of, timesteps_of


def unet_video_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of a UNet of videos."""
    side = side_of(config, shape)
    return {
        "sample": torch.randn(
            shape.batch,
            config.in_channels,
            shape.frames,
            side,
            side,
        ),
        "timestep": timesteps_of(shape),
        "encoder_hidden_states": text_of(shape, 77, config.cross_attention_dim),
    }


def unet_motion_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of a UNet with motion modules."""
    of_frames = Shape(
        shape.batch * shape.frames,
        shape.side,
        shape.text,
    )
    text = text_of(of_frames, 77, config.cross_attention_dim)
    return {
        **unet_video_inputs(config, shape),
        "encoder_hidden_states": text,
    }


def svd_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of Stable Video Diffusion."""
    side = side_of(config, shape)
    return {
        "sample": torch.randn(
            shape.batch,
            shape.frames,
            config.in_channels,
            side,
            side,
        ),
        "timestep": timesteps_of(shape),
        "encoder_hidden_states": text_of(shape, 1, config.cross_attention_dim),
        "added_time_ids": torch.ones(shape.batch, 3),
    }


def video_inputs(width: str, tokens: int = 256, *, frames_first: bool = False) -> Builder:
    """Latents of a video, and text."""

    def build(config: Any, shape: Shape) -> Inputs:
        side = shape.side or getattr(config, "sample_height", None) or default_side("", config)
        sizes = (shape.frames, config.in_channels) if frames_first else (config.in_channels, shape.frames)
        return {
            "hidden_states": torch.randn(
                shape.batch,
                *sizes,
                side,
                side,
            ),
            "encoder_hidden_states": text_of(shape, tokens, getattr(config, width)),
            "timestep": timesteps_of(shape),
        }

    return build


def masked_inputs(build: Builder, dtype: torch.dtype) -> Builder:
    """Inputs with a mask of the text."""

    def with_mask(config: Any, shape: Shape) -> Inputs:
        inputs = build(config, shape)
        mask = torch.ones(
            inputs["encoder_hidden_states"].shape[:2],
            dtype=dtype,
        )
        return {**inputs, "encoder_attention_mask": mask}

    return with_mask


def hunyuan_video_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of HunyuanVideo."""
    inputs = masked_inputs(video_inputs("text_embed_dim"), torch.long)(
        config,
        shape,
    )
    inputs["pooled_projections"] = torch.randn(shape.batch, config.pooled_projection_dim)
    if config.guidance_embeds:
        inputs["guidance"] = torch.ones(shape.batch)
    return inputs


def ltx_inputs(config: Any, shape: Shape) -> Inputs:
    """Inputs of LTX-Video."""
    side = shape.side or 16
    inputs: Inputs = {
        "hidden_states": torch.randn(
            shape.batch,
            shape.frames * side * side,
            config.in_channels,
        ),
        "encoder_hidden_states": text_of(shape, 128, config.caption_channels),
        "timestep": timesteps_of(shape),
        "num_frames": shape.frames,
        "height": side,
        "width": side,
    }
    mask = torch.ones(
        inputs["encoder_hidden_states"].shape[:2],
        dtype=torch.bool,
    )
    return {**inputs, "encoder_attention_mask": mask}
