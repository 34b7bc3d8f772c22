"""Sana."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from autoprog_diffusion.data.captions import Embeddings

from ..text_length import Reader
from .base import Family
from .prompts import where_given


class Sana(Family):
    """Sana. Its autoencoder takes no chance, and its text encoder is told what to do with a caption first."""

    pipeline_class = "SanaPipeline"
    transformer_class = "SanaTransformer2DModel"
    vae_class = "AutoencoderDC"
    guidance_scale = 4.5
    most_text = 300
    text_setting = "caption_channels"
    schedulers = (*Family.schedulers, "DPMSolverMultistepScheduler")

    def resolution(self) -> int:
        """Side of the images the pipeline was made for, in pixels."""
        return self.config.sample_size * self.vae_factor

    def readers(self, length: int) -> list[Reader]:
        """One language model; the instruction's tokens come before the caption's and do not count."""
        instruction = self._instruction()
        tokenizer = self.pipeline.tokenizer
        begin = "\n".join(instruction)
        added = len(tokenizer.encode(begin)) - 2

        def template(caption: str) -> str:
            return begin + caption.lower().strip()

        return [Reader("tokenizer", tokenizer, length, template, added)]

    def encode(self, captions: Sequence[str], length: int) -> Embeddings:
        """Captions -> (len, length, D) tokens and their (len, length) mask.

        The pipeline gives the text that it guides away from, an empty one, no instruction.
        """
        told = self._encode([caption or " " for caption in captions], length, self._instruction())
        bare = self._encode([""], length, None)
        return where_given(captions, told, bare)

    def _encode(self, captions: list[str], length: int, instruction: list[str] | None) -> Embeddings:
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            captions,
            do_classifier_free_guidance=False,
            device=self.pipeline.text_encoder.device,
            max_sequence_length=length,
            complex_human_instruction=instruction,
        )
        return tokens, mask.to(tokens)

    def _instruction(self) -> list[str]:
        """What the pipeline's call tells its text encoder by itself."""
        call = inspect.signature(type(self.pipeline).__call__)
        return call.parameters["complex_human_instruction"].default

    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, *, tokens: Tensor, pooled: Tensor) -> Tensor:
        """The denoiser's output, (N, C, h, w) as `noisy`; `times` (N,) in [0, 1]."""
        steps = self.pipeline.scheduler.config.num_train_timesteps
        return denoiser(
            noisy,
            encoder_hidden_states=tokens,
            encoder_attention_mask=pooled,
            timestep=times * steps * self.config.timestep_scale,
            return_dict=False,
        )[0]

    def drawing(self, scale: float, length: int) -> dict[str, Any]:
        """Arguments of the pipeline's call: pictures have the size that is asked for, not the nearest of a list."""
        return {**super().drawing(scale, length), "use_resolution_binning": False}
