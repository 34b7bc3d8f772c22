"""Flux.2 Klein."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autoprog_diffusion.data.captions import Embeddings

from ..parts import check_widths
from ..text_length import Reader
from .base import Family
from .prompts import chat_reader
from .shift import dynamic_shift


LAYERS = 3  # of the text encoder, whose states are one text token
STEPS = 50  # that the pipeline takes by itself: its shift follows them too


class Flux2Klein(Family):
    """Flux.2 Klein. Its VAE gives latents in patches of two by two, normalised by a batch norm."""

    pipeline_class = "Flux2KleinPipeline"
    transformer_class = "Flux2Transformer2DModel"
    vae_class = "AutoencoderKLFlux2"
    guidance_scale = 4.0
    most_text = 512
    packed = True

    def lora_targets(self) -> tuple[str, ...]:
        """Attention's layers, which single blocks have in one with their feed-forward layers."""
        single = [f"single_transformer_blocks.{index}.attn.to_out" for index in range(self.config.num_single_layers)]
        return (*super().lora_targets(), "to_qkv_mlp_proj", *single)

    def check_text(self, name: str) -> None:
        """Refuse text encoders that do not fit the transformer.

        Raises:
            GrowthError: The message names both widths.
        """
        check_widths(
            name,
            text=LAYERS * self.pipeline.text_encoder.config.hidden_size,
            wanted=self.config.joint_attention_dim,
            setting="joint_attention_dim",
        )

    def readers(self, length: int) -> list[Reader]:
        """One language model, which is given a question to answer."""
        return [chat_reader(self.pipeline.tokenizer, length, thinking=False)]

    def encode(self, captions: Sequence[str], length: int) -> Embeddings:
        """Captions -> (len, L, D) tokens, padding included as in the pipeline, and nothing pooled."""
        device = self.pipeline.text_encoder.device
        tokens, _ = self.pipeline.encode_prompt(list(captions), device=device, max_sequence_length=length)
        return tokens, tokens.new_zeros(len(tokens), 0)

    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, *, tokens: Tensor, pooled: Tensor) -> Tensor:
        """The denoiser's output, (N, 4C, h, w) as `noisy`; `times` (N,) in [0, 1]."""
        del pooled
        count, _, height, width = noisy.shape
        guidance = None
        if self.config.guidance_embeds:
            guidance = torch.full((count,), self.guidance, device=noisy.device, dtype=noisy.dtype)
        output = denoiser(
            hidden_states=noisy.flatten(2).transpose(1, 2),
            timestep=times,
            guidance=guidance,
            encoder_hidden_states=tokens,
            # Time, row, column, and place in the text.
            txt_ids=positions(1, 1, 1, tokens.shape[1]).to(noisy.device),
            img_ids=positions(1, height, width, 1).to(noisy.device),
            return_dict=False,
        )[0]
        return output.transpose(1, 2).unflatten(2, (height, width))

    def shift(self, tokens: int, full_tokens: float) -> float:
        """Shift of time for images of so many tokens: the pipeline's formula, where its scheduler asks for one."""
        config = self.pipeline.scheduler.config
        if not config.get("use_dynamic_shifting"):
            return super().shift(tokens, full_tokens)
        return dynamic_shift(config, empirical_mu(tokens, STEPS))


def positions(*sizes: int) -> Tensor:
    """Position ids (tokens, axes) of a grid, its last axis first."""
    return torch.cartesian_prod(*(torch.arange(size) for size in sizes))


def empirical_mu(tokens: int, steps: int) -> float:
    """Flux.2's mu: linear in the steps between two lines, for 10 and for 200 steps, that are linear in the tokens.

    Above 4300 tokens the line for 200 steps counts alone.
    """
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    slope = (many - few) / 190
    return slope * steps + many - 200 * slope
