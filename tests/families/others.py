"""Denoisers of sound and of image embeddings, and one that is a language model too."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed

from .family import Family, lists, noise, seeded, time


def _stable_audio_inputs(seed: int, batch: int) -> dict[str, Any]:
    draw = noise(seed)
    return {
        "hidden_states": draw(batch, 4, 8),
        "timestep": time(seed, batch) / 1000,
        "encoder_hidden_states": draw(batch, 5, 8),
        "global_hidden_states": draw(batch, 1, 8),
        # The global token stands in front of the sound's.
        "rotary_embedding": get_1d_rotary_pos_embed(4, 8 + 1, use_real=True, repeat_interleave_real=False),
    }


def _prior_inputs(seed: int, batch: int) -> dict[str, Any]:
    draw = noise(seed)
    return {
        "hidden_states": draw(batch, 8),
        "timestep": time(seed, batch),
        "proj_embedding": draw(batch, 8),
        "encoder_hidden_states": draw(batch, 5, 8),
    }


def _omnigen_inputs(seed: int, batch: int) -> dict[str, Any]:
    draw = noise(seed)
    tokens = 8 + 1 + 16  # prompt with an image of 4 tokens in it, timestep, image
    return {
        "hidden_states": draw(batch, 4, 8, 8),
        "timestep": time(seed, batch) / 1000,
        "input_ids": torch.randint(1, 20, (batch, 8), generator=torch.Generator().manual_seed(seed + 2)),
        "input_img_latents": [draw(1, 4, 4, 4) for _ in range(batch)],
        "input_image_sizes": {index: [[2, 6]] for index in range(batch)},
        "attention_mask": torch.ones(batch, tokens, tokens),
        "position_ids": torch.arange(tokens).repeat(batch, 1),
    }


ROWS = [
    Family(
        "stable_audio",
        seeded(
            diffusers.StableAudioDiTModel,
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=6,
            attention_head_dim=8,
            num_attention_heads=2,
            num_key_value_attention_heads=1,
            cross_attention_dim=8,
            time_proj_dim=16,
            global_states_input_dim=8,
            cross_attention_input_dim=8,
        ),
        _stable_audio_inputs,
        lists(transformer_blocks=6),
        points=1,
        unused=("time_proj.weight",),  # random frequencies, frozen by the class
        time_token=True,
    ),
    Family(
        "prior",
        seeded(
            diffusers.PriorTransformer,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=6,
            embedding_dim=8,
            num_embeddings=5,
            additional_embeddings=4,
        ),
        _prior_inputs,
        lists(transformer_blocks=6),
        points=1,
        unused=("clip_mean", "clip_std"),  # the pipeline's, not forward's
        time_token=True,
    ),
    Family(
        "omnigen",
        seeded(
            diffusers.OmniGenTransformer2DModel,
            in_channels=4,
            patch_size=2,
            hidden_size=16,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=32,
            num_layers=6,
            pad_token_id=0,
            vocab_size=20,
            time_step_dim=16,
            pos_embed_max_size=8,
            rope_scaling={"long_factor": [1, 2], "short_factor": [1, 2]},
        ),
        _omnigen_inputs,
        lists(layers=6),
        points=2,  # one for the sequence, one for the last norm
    ),
]
