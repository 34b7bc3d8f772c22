"""Image transformers that attend to image and text jointly."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from torch import Tensor

from .family import Family, grid, lists, newer, noise, seeded, time
from .images import text_to_image_inputs


TEXT = torch.zeros(5, 3)  # position ids of the text tokens


def _sd3_inputs(seed: int, batch: int) -> dict[str, Any]:
    draw = noise(seed)
    return {
        "hidden_states": draw(batch, 4, 8, 8),
        "encoder_hidden_states": draw(batch, 5, 8),
        "pooled_projections": draw(batch, 8),
        "timestep": time(seed, batch),
    }


def _tokens(seed: int, batch: int) -> dict[str, Any]:
    """What transformers of packed latents take, without position ids."""
    draw = noise(seed)
    return {
        "hidden_states": draw(batch, 16, 4),
        "encoder_hidden_states": draw(batch, 5, 8),
        "timestep": time(seed, batch) / 1000,
    }


def _flux_inputs(seed: int, batch: int) -> dict[str, Any]:
    return {
        **_packed_inputs(seed, batch),
        "pooled_projections": noise(seed + 2)(batch, 8),
        "guidance": torch.full((batch,), 3.5),
    }


def _packed_inputs(seed: int, batch: int) -> dict[str, Any]:
    return {**_tokens(seed, batch), "img_ids": grid(1, 4, 4), "txt_ids": TEXT}


def _flux2_inputs(seed: int, batch: int) -> dict[str, Any]:
    ids = {"img_ids": grid(1, 4, 4, 1), "txt_ids": grid(1, 1, 1, 5)}
    return {**_tokens(seed, batch), **ids, "guidance": torch.full((batch,), 3.5)}


def _bria_inputs(seed: int, batch: int) -> dict[str, Any]:
    return {**_packed_inputs(seed, batch), "timestep": time(seed, batch)}


def _qwen_inputs(seed: int, batch: int) -> dict[str, Any]:
    return {
        **_tokens(seed, batch),
        "encoder_hidden_states_mask": torch.ones(batch, 5, dtype=torch.long),
        "img_shapes": [(1, 4, 4)] * batch,
    }


def _cogview4_inputs(seed: int, batch: int) -> dict[str, Any]:
    def pair(value: float) -> Tensor:
        return torch.full((batch, 2), value)

    sizes = {"original_size": pair(64.0), "target_size": pair(64.0), "crop_coords": pair(0.0)}
    return {**text_to_image_inputs(seed, batch), **sizes}


def _auraflow_inputs(seed: int, batch: int) -> dict[str, Any]:
    return {**text_to_image_inputs(seed, batch), "timestep": time(seed, batch) / 1000}


def _z_image_inputs(seed: int, batch: int) -> dict[str, Any]:
    draw = noise(seed)
    return {
        "x": [draw(4, 1, 8, 8) for _ in range(batch)],
        "t": time(seed, batch) / 1000,
        "cap_feats": [draw(5, 8) for _ in range(batch)],
    }


HEADS = {"attention_head_dim": 8, "num_attention_heads": 2}
PACKED = {**HEADS, "in_channels": 4, "patch_size": 1, "joint_attention_dim": 8}
DOUBLE = {"num_layers": 3, "num_single_layers": 4}

ROWS = [
    Family(
        "sd3",
        seeded(
            diffusers.SD3Transformer2DModel,
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=6,
            attention_head_dim=4,
            num_attention_heads=2,
            joint_attention_dim=8,
            caption_projection_dim=8,
            pooled_projection_dim=8,
            pos_embed_max_size=8,
        ),
        _sd3_inputs,
        lists(transformer_blocks=6),
        points=1,
        unused=("transformer_blocks.5.attn.add_q_proj.*",),  # queries of a text stream that ends here: zero
    ),
    Family(
        "flux",
        seeded(
            diffusers.FluxTransformer2DModel,
            pooled_projection_dim=8,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
            **DOUBLE,
            **PACKED,
        ),
        _flux_inputs,
        lists(transformer_blocks=3, single_transformer_blocks=4),
        points=1,
    ),
    Family(
        "flux2",
        seeded(
            newer("flux2"),
            timestep_guidance_channels=16,
            axes_dims_rope=(2, 2, 2, 2),
            **DOUBLE,
            **PACKED,
        ),
        _flux2_inputs,
        lists(transformer_blocks=3, single_transformer_blocks=4),
        points=0,  # its timestep embedder has no bias
    ),
    Family(
        "chroma",
        seeded(
            diffusers.ChromaTransformer2DModel,
            axes_dims_rope=(2, 2, 4),
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
            **DOUBLE,
            **PACKED,
        ),
        _packed_inputs,
        lists(transformer_blocks=3, single_transformer_blocks=4),
        points=0,  # one network makes all modulations: there is no timestep embedder
    ),
    Family(
        "bria",
        seeded(newer("bria"), axes_dims_rope=[2, 2, 4], **DOUBLE, **PACKED),
        _bria_inputs,
        lists(transformer_blocks=3, single_transformer_blocks=4),
        points=1,
    ),
    Family(
        "auraflow",
        seeded(
            diffusers.AuraFlowTransformer2DModel,
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_mmdit_layers=2,
            num_single_dit_layers=4,
            joint_attention_dim=8,
            caption_projection_dim=16,
            pos_embed_max_size=16,
            **HEADS,
        ),
        _auraflow_inputs,
        lists(joint_transformer_blocks=2, single_transformer_blocks=4),
        points=1,
    ),
    Family(
        "cogview4",
        seeded(
            diffusers.CogView4Transformer2DModel,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=6,
            text_embed_dim=8,
            time_embed_dim=8,
            condition_dim=4,
            **HEADS,
        ),
        _cogview4_inputs,
        lists(transformer_blocks=6),
        points=1,
    ),
    Family(
        "qwen_image",
        seeded(
            diffusers.QwenImageTransformer2DModel,
            patch_size=2,
            in_channels=4,
            out_channels=1,
            num_layers=6,
            joint_attention_dim=8,
            axes_dims_rope=(4, 2, 2),
            **HEADS,
        ),
        _qwen_inputs,
        lists(transformer_blocks=6),
        points=1,
        # The text stream of the last block leads nowhere: no gradient, and zero for its queries.
        unused=(
            "transformer_blocks.5.txt_mlp.*",
            "transformer_blocks.5.attn.to_add_out.*",
            "transformer_blocks.5.attn.*add*_q*",
        ),
    ),
    Family(
        "z_image",
        seeded(
            newer("z_image"),
            in_channels=4,
            dim=16,
            n_layers=4,
            n_refiner_layers=2,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=8,
            axes_dims=[4, 2, 2],
            axes_lens=[64, 32, 32],
        ),
        _z_image_inputs,
        lists(noise_refiner=2, context_refiner=2, layers=4),
        points=1,
    ),
]
