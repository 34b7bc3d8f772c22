"""Flux.1: dev, which has a guidance embedding, schnell, and what was made from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autoprog_diffusion.data.captions import Embeddings

from ..parts import check_widths
from ..text_length import Reader
from .base import Family


class Flux(Family):
    """Flux.1. Rotary positions count patches from the corner, at every resolution, as in the pipeline."""

    pipeline_class = "FluxPipeline"
    transformer_class = "FluxTransformer2DModel"
    guidance_scale = 3.5
    most_text = 512
    packed = True

    def check_text(self, name: str) -> None:
        """Refuse text encoders that do not fit the transformer.

        Raises:
            GrowthError: The message names both widths.
        """
        pipeline = self.pipeline
        check_widths(
            name,
            text=pipeline.text_encoder.config.hidden_size,
            wanted=self.config.pooled_projection_dim,
            setting="pooled_projection_dim",
        )
        check_widths(
            name,
            text=pipeline.text_encoder_2.config.d_model,
            wanted=self.config.joint_attention_dim,
            setting="joint_attention_dim",
        )

    def readers(self, length: int) -> list[Reader]:
        """CLIP, whose pooled text reads the first tokens only, and T5."""
        pipeline = self.pipeline
        return [
            Reader("tokenizer", pipeline.tokenizer, pipeline.tokenizer_max_length),
            Reader("tokenizer_2", pipeline.tokenizer_2, length),
        ]

    def encode(self, captions: Sequence[str], length: int) -> Embeddings:
        """Captions -> (len, L, D) tokens and (len, P) pooled."""
        # The pipeline would ask its first part, which may lie elsewhere.
        device = self.pipeline.text_encoder.device
        encoded = self.pipeline.encode_prompt(list(captions), None, device=device, max_sequence_length=length)
        tokens, pooled, _ = encoded
        return tokens, pooled

    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, *, tokens: Tensor, pooled: Tensor) -> Tensor:
        """The denoiser's output, (N, C, h, w) as `noisy`; `times` (N,) in [0, 1]."""
        pipeline = self.pipeline
        count, channels, height, width = noisy.shape
        place = {"device": noisy.device, "dtype": noisy.dtype}
        guidance = None
        if self.config.guidance_embeds:
            guidance = torch.full((count,), self.guidance, **place)
        output = denoiser(
            hidden_states=pipeline._pack_latents(noisy, count, channels, height, width),
            timestep=times,
            guidance=guidance,
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            txt_ids=torch.zeros(tokens.shape[1], 3, **place),
            img_ids=pipeline._prepare_latent_image_ids(count, height // 2, width // 2, **place),
            return_dict=False,
        )[0]
        factor = self.vae_factor
        return pipeline._unpack_latents(output, height * factor, width * factor, factor)
