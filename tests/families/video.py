"""Video transformers."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from .family import Family, lists, noise, seeded, time


FRAMES = 2


def _video_inputs(seed: int, batch: int) -> dict[str, Any]:
    draw = noise(seed)
    return {
        "hidden_states": draw(batch, 4, FRAMES, 8, 8),
        "encoder_hidden_states": draw(batch, 5, 8),
        "timestep": time(seed, batch),
    }


def _cogvideox_inputs(seed: int, batch: int) -> dict[str, Any]:
    inputs = _video_inputs(seed, batch)
    return {**inputs, "hidden_states": inputs["hidden_states"].transpose(1, 2).contiguous()}


def _ltx_inputs(seed: int, batch: int) -> dict[str, Any]:
    draw = noise(seed)
    return {
        "hidden_states": draw(batch, FRAMES * 4 * 4, 4),
        "encoder_hidden_states": draw(batch, 5, 8),
        "timestep": time(seed, batch),
        "encoder_attention_mask": torch.ones(batch, 5, dtype=torch.bool),
        "num_frames": FRAMES,
        "height": 4,
        "width": 4,
    }


def _hunyuan_video_inputs(seed: int, batch: int) -> dict[str, Any]:
    return {
        **_video_inputs(seed, batch),
        "encoder_attention_mask": torch.ones(batch, 5, dtype=torch.long),
        "pooled_projections": noise(seed + 2)(batch, 8),
        "guidance": torch.full((batch,), 6000.0),
    }


def _mochi_inputs(seed: int, batch: int) -> dict[str, Any]:
    return {**_video_inputs(seed, batch), "encoder_attention_mask": torch.ones(batch, 5, dtype=torch.bool)}


CHANNELS = {"in_channels": 4, "out_channels": 4}
WAN = {
    **CHANNELS,
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 6,
    "rope_max_seq_len": 32,
}
SMALL = {**CHANNELS, "num_attention_heads": 2, "attention_head_dim": 8}

ROWS = [
    Family(
        "cogvideox",
        seeded(
            diffusers.CogVideoXTransformer3DModel,
            time_embed_dim=8,
            text_embed_dim=8,
            num_layers=6,
            sample_width=8,
            sample_height=8,
            sample_frames=5,
            max_text_seq_length=5,
            **SMALL,
        ),
        _cogvideox_inputs,
        lists(transformer_blocks=6),
        points=1,
    ),
    Family(
        "ltx_video",
        seeded(
            diffusers.LTXVideoTransformer3DModel,
            cross_attention_dim=16,
            num_layers=6,
            caption_channels=8,
            **SMALL,
        ),
        _ltx_inputs,
        lists(transformer_blocks=6),
        points=1,
    ),
    Family("wan", seeded(diffusers.WanTransformer3DModel, **WAN), _video_inputs, lists(blocks=6), points=1),
    Family("skyreels_v2", seeded(diffusers.SkyReelsV2Transformer3DModel, **WAN), _video_inputs, lists(blocks=6), 1),
    Family(
        "hunyuan_video",
        seeded(
            diffusers.HunyuanVideoTransformer3DModel,
            num_layers=3,
            num_single_layers=4,
            num_refiner_layers=1,
            text_embed_dim=8,
            pooled_projection_dim=8,
            rope_axes_dim=(2, 2, 4),
            **SMALL,
        ),
        _hunyuan_video_inputs,
        lists(transformer_blocks=3, single_transformer_blocks=4),
        points=1,  # not the text refiner's own embedder
    ),
    Family(
        "mochi",
        seeded(
            diffusers.MochiTransformer3DModel,
            num_layers=6,
            pooled_projection_dim=16,
            text_embed_dim=8,
            time_embed_dim=8,
            max_sequence_length=5,
            **SMALL,
        ),
        _mochi_inputs,
        lists(transformer_blocks=6),
        points=1,
        unused=("transformer_blocks.5.attn1.*add*_q*",),  # queries of a text stream that ends here: zero
    ),
    Family(
        "allegro",
        seeded(
            diffusers.AllegroTransformer3DModel,
            num_layers=6,
            cross_attention_dim=16,
            sample_height=8,
            sample_width=8,
            sample_frames=FRAMES,
            caption_channels=8,
            **SMALL,
        ),
        _video_inputs,
        lists(transformer_blocks=6),
        points=1,
    ),
    Family(
        "latte",
        seeded(
            diffusers.LatteTransformer3DModel,
            num_layers=3,
            patch_size=2,
            sample_size=8,
            cross_attention_dim=16,
            caption_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            video_length=FRAMES,
            **SMALL,
        ),
        _video_inputs,
        # Space and time take turns.
        tuple(
            f"{kind}.{index}" for index in range(3) for kind in ("transformer_blocks", "temporal_transformer_blocks")
        ),
        points=1,
    ),
]
