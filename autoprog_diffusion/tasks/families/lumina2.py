"""Lumina-Image 2.0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from autoprog_diffusion.data.captions import Embeddings

from ..text_length import Reader
from .base import Family
from .prompts import where_given
from .shift import dynamic_shift, linear_mu


class Lumina2(Family):
    """Lumina-Image 2.0. Its time runs from noise at 0 to the picture at 1, and its output is the other way round."""

    pipeline_class = "Lumina2Pipeline"
    transformer_class = "Lumina2Transformer2DModel"
    guidance_scale = 4.0
    most_text = 256
    trims = True
    text_setting = "cap_feat_dim"

    def output_channels(self) -> int:
        """Channels of the transformer's output."""
        return self.config.out_channels or self.config.in_channels

    def readers(self, length: int) -> list[Reader]:
        """One language model, which is given a system prompt before the caption."""
        begin = f"{self.pipeline.system_prompt} <Prompt Start> "
        return [Reader("tokenizer", self.pipeline.tokenizer, length, begin.__add__)]

    def encode(self, captions: Sequence[str], length: int) -> Embeddings:
        """Captions -> (len, length, D) tokens and their (len, length) mask.

        The pipeline gives the text that it guides away from, an empty one, no system prompt.
        """
        told = self._encode(list(captions), length)
        bare = self.pipeline._get_gemma_prompt_embeds([""], told[0].device, length)
        return where_given(captions, told, bare)

    def _encode(self, captions: list[str], length: int) -> Embeddings:
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            device=self.pipeline.text_encoder.device,
            max_sequence_length=length,
        )
        return tokens, mask.to(tokens)

    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, *, tokens: Tensor, pooled: Tensor) -> Tensor:
        """The denoiser's output with its sign changed, (N, C, h, w) as `noisy`; `times` (N,) in [0, 1]."""
        return -denoiser(
            hidden_states=noisy,
            timestep=1 - times,
            encoder_hidden_states=tokens,
            encoder_attention_mask=pooled.bool(),
            return_dict=False,
        )[0]

    def shift(self, tokens: int, full_tokens: float) -> float:
        """Shift of time; a dynamic one follows the channels of the latents, which the pipeline takes for tokens."""
        config = self.pipeline.scheduler.config
        if not config.get("use_dynamic_shifting"):
            return super().shift(tokens, full_tokens)
        return dynamic_shift(config, linear_mu(config, self.config.in_channels))
