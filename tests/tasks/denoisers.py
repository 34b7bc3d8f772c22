"""The denoisers of the tiny pipelines, called with fixed inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def denoiser_of(pipeline: Any) -> Any:
    return getattr(pipeline, "transformer", None) or pipeline.unet


def output(kind: str, denoiser: Any) -> Tensor:
    """Of fixed inputs, in evaluation mode."""
    generator = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    config, times = denoiser.config, torch.tensor([0.3, 0.9])
    if kind == "flux":
        inputs: dict[str, Any] = {
            "hidden_states": noise(2, 16, config.in_channels), "timestep": times, "guidance": torch.ones(2),
            "pooled_projections": noise(2, config.pooled_projection_dim), "img_ids": torch.zeros(16, 3),
            "encoder_hidden_states": noise(2, 3, config.joint_attention_dim), "txt_ids": torch.zeros(3, 3),
        }  # fmt: skip
    elif kind == "sd3":
        inputs = {
            "hidden_states": noise(2, 4, 8, 8), "timestep": 1000 * times,
            "encoder_hidden_states": noise(2, 3, config.joint_attention_dim),
            "pooled_projections": noise(2, config.pooled_projection_dim),
        }  # fmt: skip
    else:
        added = {"text_embeds": noise(2, 32), "time_ids": 64 * noise(2, 6)}
        inputs = {
            "sample": noise(2, 4, 16, 16), "timestep": 1000 * times,
            "encoder_hidden_states": noise(2, 16, config.cross_attention_dim),
            **({"added_cond_kwargs": added} if kind == "sdxl" else {}),
        }  # fmt: skip
    with torch.no_grad():
        return denoiser.eval()(**inputs, return_dict=False)[0]
