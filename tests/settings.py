"""The table of model families: one row gives a family every test of `test_contracts.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        id: Of its tests.
        build: A tiny model of the real class, the same weights at every call.
        inputs: Keyword arguments of its forward for a seed and a batch size.
        blocks: Names of the growable blocks, in forward order.
        points: Number of places where the stage embedding enters.
    """

    id: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], dict[str, Any]]
    blocks: tuple[str, ...]
    points: int

    def loss(self, model: nn.Module, seed: int, batch: int = 2) -> Tensor:
        """A loss with a random target; the same seed gives the same loss, dropout included."""
        inputs = self.inputs(seed, batch)
        torch.manual_seed(seed)
        output = model(**inputs, return_dict=False)[0]
        target = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed + 1000))
        return nn.functional.mse_loss(output, target)


def _seeded(cls: type, **config: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        state = torch.get_rng_state()
        torch.manual_seed(0)
        model = cls(**config)
        torch.set_rng_state(state)
        return model

    return build


def _units(prefix: str, counts: list[int]) -> list[str]:
    return [f"{prefix}.{level}.resnets.{index}" for level, count in enumerate(counts) for index in range(count)]


def _lists(**counts: int) -> tuple[str, ...]:
    return tuple(f"{name}.{index}" for name, count in counts.items() for index in range(count))


def _noise(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def _time(seed: int, batch: int, high: int = 1000) -> Tensor:
    return torch.randint(0, high, (batch,), generator=torch.Generator().manual_seed(seed + 1))


def _sd_inputs(seed: int, batch: int) -> dict[str, Any]:
    noise = _noise(seed)
    return {
        "sample": noise(batch, 4, 16, 16),
        "timestep": _time(seed, batch),
        "encoder_hidden_states": noise(batch, 5, 8),
    }


def _sdxl_inputs(seed: int, batch: int) -> dict[str, Any]:
    noise = _noise(seed)
    sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]]).repeat(batch, 1)
    return {
        "sample": noise(batch, 4, 8, 8),
        "timestep": _time(seed, batch),
        "encoder_hidden_states": noise(batch, 5, 8),
        "added_cond_kwargs": {"text_embeds": noise(batch, 16), "time_ids": sizes},
    }


def _unet2d_inputs(seed: int, batch: int) -> dict[str, Any]:
    return {"sample": _noise(seed)(batch, 3, 8, 8), "timestep": _time(seed, batch)}


def _dit_inputs(seed: int, batch: int) -> dict[str, Any]:
    return {
        "hidden_states": _noise(seed)(batch, 4, 8, 8),
        "timestep": _time(seed, batch),
        "class_labels": _time(seed, batch, 10),
    }


def _pixart_inputs(seed: int, batch: int) -> dict[str, Any]:
    noise = _noise(seed)
    return {
        "hidden_states": noise(batch, 4, 8, 8),
        "encoder_hidden_states": noise(batch, 5, 8),
        "timestep": _time(seed, batch),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _sd3_inputs(seed: int, batch: int) -> dict[str, Any]:
    noise = _noise(seed)
    return {
        "hidden_states": noise(batch, 4, 8, 8),
        "encoder_hidden_states": noise(batch, 5, 8),
        "pooled_projections": noise(batch, 8),
        "timestep": _time(seed, batch),
    }


def _flux_inputs(seed: int, batch: int) -> dict[str, Any]:
    noise = _noise(seed)
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    return {
        "hidden_states": noise(batch, 16, 4),
        "encoder_hidden_states": noise(batch, 5, 8),
        "pooled_projections": noise(batch, 8),
        "timestep": _time(seed, batch) / 1000,
        "img_ids": torch.stack([torch.zeros(4, 4), rows, columns], dim=-1).reshape(16, 3),
        "txt_ids": torch.zeros(5, 3),
        "guidance": torch.full((batch,), 3.5),
    }


FAMILIES = [
    Family(
        "sd",
        _seeded(
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
        (*_units("down_blocks", [1] * 4), "mid_block", *_units("up_blocks", [2] * 4)),
        points=1,
    ),
    Family(
        "sdxl",
        _seeded(
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
        (*_units("down_blocks", [2, 2]), "mid_block", *_units("up_blocks", [3, 3])),
        points=1,
    ),
    Family(
        "unet2d",
        _seeded(
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
        (*_units("down_blocks", [1, 1]), "mid_block", *_units("up_blocks", [2, 2])),
        points=1,
    ),
    Family(
        "dit",
        _seeded(
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
        _lists(transformer_blocks=8),
        points=8,
    ),
    Family(
        "pixart",
        _seeded(
            diffusers.PixArtTransformer2DModel,
            num_attention_heads=2,
            attention_head_dim=4,
            in_channels=4,
            out_channels=8,
            num_layers=6,
            sample_size=8,
            patch_size=2,
            cross_attention_dim=8,
            caption_channels=8,
        ),
        _pixart_inputs,
        _lists(transformer_blocks=6),
        points=1,
    ),
    Family(
        "sd3",
        _seeded(
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
        _lists(transformer_blocks=6),
        points=1,
    ),
    Family(
        "flux",
        _seeded(
            diffusers.FluxTransformer2DModel,
            patch_size=1,
            in_channels=4,
            num_layers=3,
            num_single_layers=4,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        ),
        _flux_inputs,
        _lists(transformer_blocks=3, single_transformer_blocks=4),
        points=1,
    ),
]

BY_ID = {family.id: family for family in FAMILIES}
