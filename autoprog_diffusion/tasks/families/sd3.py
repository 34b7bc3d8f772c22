"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from autoprog_diffusion.data.captions import Embeddings

from ..parts import check_channels, check_widths
from ..text_length import Reader
from .base import Family


class SD3(Family):
    """Stable Diffusion 3 and 3.5. Its position embedding is cropped to the stage's resolution, as in the pipeline."""

    pipeline_class = "StableDiffusion3Pipeline"
    transformer_class = "SD3Transformer2DModel"
    guidance_scale = 7.0
    most_text = 256  # T5 tokens
    optional = ("text_encoder_3", "tokenizer_3")

    def resolution(self) -> int:
        """Side of the images the pipeline was made for, in pixels."""
        return self.config.sample_size * self.vae_factor

    def largest(self) -> int | None:
        """Largest side of an image in pixels: the position embedding is a table."""
        patches = self.config.pos_embed_max_size
        return patches and patches * self.token_side

    def check_latents(self, name: str) -> None:
        """Refuse a transformer that does not take and give one latent image.

        Raises:
            GrowthError: The message names the channels.
        """
        check_channels(
            name,
            words="transformer",
            config=self.config,
            vae=self.pipeline.vae,
            outputs=(1,),
        )

    def check_text(self, name: str) -> None:
        """Refuse text encoders that do not fit the transformer.

        Raises:
            GrowthError: The message names both widths.
        """
        pipeline = self.pipeline
        pooled = pipeline.text_encoder.config.projection_dim + pipeline.text_encoder_2.config.projection_dim
        check_widths(
            name,
            text=pooled,
            wanted=self.config.pooled_projection_dim,
            setting="pooled_projection_dim",
        )
        if pipeline.text_encoder_3 is not None:
            width = pipeline.text_encoder_3.config.d_model
            check_widths(
                name,
                text=width,
                wanted=self.config.joint_attention_dim,
                setting="joint_attention_dim",
            )

    def readers(self, length: int) -> list[Reader]:
        """Two CLIP encoders that read the first tokens only, and T5, where it is there."""
        pipeline = self.pipeline
        readers = [
            Reader("tokenizer", pipeline.tokenizer, pipeline.tokenizer_max_length),
            Reader("tokenizer_2", pipeline.tokenizer_2, pipeline.tokenizer_max_length),
        ]
        if pipeline.text_encoder_3 is not None:
            readers.append(Reader("tokenizer_3", pipeline.tokenizer_3, length))
        return readers

    def encode(self, captions: Sequence[str], length: int) -> Embeddings:
        """Captions -> (len, L, D) tokens and (len, P) pooled."""
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            list(captions),
            None,
            None,
            # The pipeline would ask its first part, which may lie elsewhere.
            device=self.pipeline.text_encoder.device,
            max_sequence_length=length,
            do_classifier_free_guidance=False,
        )
        return tokens, pooled

    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, *, tokens: Tensor, pooled: Tensor) -> Tensor:
        """The denoiser's output, (N, C, h, w) as `noisy`; `times` (N,) in [0, 1]."""
        return denoiser(
            hidden_states=noisy,
            timestep=times * self.pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
