"""PixArt-Sigma, which is trained by denoising."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from autoprog_diffusion.data.captions import Embeddings

from ..noise_schedule import DENOISING, check_denoising
from ..parts import check_channels
from ..text_length import Reader
from .base import Family


class PixArtSigma(Family):
    """PixArt-Sigma. Its transformer predicts the noise, and its variance too, which the pipeline leaves aside."""

    pipeline_class = "PixArtSigmaPipeline"
    transformer_class = "PixArtTransformer2DModel"
    vae_follows = ()
    guidance_scale = 4.5
    most_text = 300
    text_setting = "caption_channels"
    schedulers = DENOISING
    process = "denoising"

    def resolution(self) -> int:
        """Side of the images the pipeline was made for, in pixels."""
        return self.config.sample_size * self.vae_factor

    def check_scheduler(self, name: str) -> None:
        """Refuse a scheduler of another process.

        Raises:
            GrowthError: The message names the class or the setting.
        """
        check_denoising(name, self.pipeline.scheduler)

    def check_latents(self, name: str) -> None:
        """Refuse a transformer that does not take one latent image, and give its noise, perhaps with a variance.

        Raises:
            GrowthError: The message names the channels.
        """
        check_channels(
            name,
            words="transformer",
            config=self.config,
            vae=self.pipeline.vae,
            outputs=(1, 2),
        )

    def readers(self, length: int) -> list[Reader]:
        """T5, which is given the caption cleaned."""

        def template(caption: str) -> str:
            return self.pipeline._text_preprocessing([caption], clean_caption=True)[0]

        return [Reader("tokenizer", self.pipeline.tokenizer, length, template)]

    def encode(self, captions: Sequence[str], length: int) -> Embeddings:
        """Captions -> (len, length, D) tokens and their (len, length) mask."""
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            list(captions),
            do_classifier_free_guidance=False,
            device=self.pipeline.text_encoder.device,
            clean_caption=True,  # as the pipeline's call does by itself
            max_sequence_length=length,
        )
        return tokens, mask.to(tokens)

    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, *, tokens: Tensor, pooled: Tensor) -> Tensor:
        """The denoiser's output, (N, C, h, w), or (N, 2C, h, w) with a variance; `times` (N,) whole timesteps."""
        return denoiser(
            noisy,
            encoder_hidden_states=tokens,
            encoder_attention_mask=pooled,
            timestep=times,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]

    def drawing(self, scale: float, length: int) -> dict[str, Any]:
        """Arguments of the pipeline's call: pictures have the size that is asked for, not the nearest of a list."""
        return {**super().drawing(scale, length), "use_resolution_binning": False}
