"""UNets: the blocks are the resnets, with their attention, and the middle."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from .family import Family, noise, seeded, time, units


FRAMES = 2


def _sd_inputs(seed: int, batch: int) -> dict[str, Any]:
    draw = noise(seed)
    return {
        "sample": draw(batch, 4, 16, 16),
        "timestep": time(seed, batch),
        "encoder_hidden_states": draw(batch, 5, 8),
    }


def _sdxl_inputs(seed: int, batch: int) -> dict[str, Any]:
    draw = noise(seed)
    sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]]).repeat(batch, 1)
    return {
        "sample": draw(batch, 4, 8, 8),
        "timestep": time(seed, batch),
        "encoder_hidden_states": draw(batch, 5, 8),
        "added_cond_kwargs": {"text_embeds": draw(batch, 16), "time_ids": sizes},
    }


def _unet2d_inputs(seed: int, batch: int) -> dict[str, Any]:
    return {"sample": noise(seed)(batch, 3, 8, 8), "timestep": time(seed, batch)}


def _unet3d_inputs(seed: int, batch: int) -> dict[str, Any]:
    draw = noise(seed)
    return {
        "sample": draw(batch, 4, FRAMES, 4, 4),
        "timestep": time(seed, batch),
        "encoder_hidden_states": draw(batch, 5, 8),
    }


def _motion_inputs(seed: int, batch: int) -> dict[str, Any]:
    return {**_unet3d_inputs(seed, batch), "encoder_hidden_states": noise(seed + 2)(batch * FRAMES, 5, 8)}


def _svd_inputs(seed: int, batch: int) -> dict[str, Any]:
    draw = noise(seed)
    return {
        "sample": draw(batch, FRAMES, 4, 4, 4),
        "timestep": time(seed, batch),
        "encoder_hidden_states": draw(batch, 2, 8),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]]).repeat(batch, 1),
    }


ROWS = [
    Family(
        "sd",
        seeded(
            diffusers.UNet2DConditionModel,
            sample_size=16,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            cross_attention_dim=8,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        _sd_inputs,
        (*units("down_blocks", [1] * 4), "mid_block", *units("up_blocks", [2] * 4)),
        points=1,
    ),
    Family(
        "sdxl",
        seeded(
            diffusers.UNet2DConditionModel,
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            cross_attention_dim=8,
            norm_num_groups=4,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
        ),
        _sdxl_inputs,
        (*units("down_blocks", [2, 2]), "mid_block", *units("up_blocks", [3, 3])),
        points=1,
    ),
    Family(
        "unet2d",
        seeded(
            diffusers.UNet2DModel,
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        _unet2d_inputs,
        (*units("down_blocks", [1, 1]), "mid_block", *units("up_blocks", [2, 2])),
        points=1,
    ),
    Family(
        "unet3d",
        seeded(
            diffusers.UNet3DConditionModel,
            sample_size=4,
            block_out_channels=(4, 8),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            attention_head_dim=2,
            cross_attention_dim=8,
            norm_num_groups=2,
        ),
        _unet3d_inputs,
        (*units("down_blocks", [1, 1]), "mid_block", *units("up_blocks", [2, 2])),
        points=1,
    ),
    Family(
        "unet_motion",
        seeded(
            diffusers.UNetMotionModel,
            sample_size=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
            up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
            num_attention_heads=2,
            motion_num_attention_heads=2,
            cross_attention_dim=8,
            norm_num_groups=4,
        ),
        _motion_inputs,
        (*units("down_blocks", [1, 1]), "mid_block", *units("up_blocks", [2, 2])),
        points=1,
    ),
    Family(
        "svd",
        seeded(
            diffusers.UNetSpatioTemporalConditionModel,
            sample_size=4,
            in_channels=4,
            block_out_channels=(64,),  # its norms have 32 groups; of one channel each, they would undo the timestep
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlockSpatioTemporal",),
            up_block_types=("CrossAttnUpBlockSpatioTemporal",),
            num_attention_heads=2,
            cross_attention_dim=8,
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=3 * 8,
        ),
        _svd_inputs,
        (*units("down_blocks", [1]), "mid_block", *units("up_blocks", [2])),
        points=1,
    ),
]
