"""Wan 2.1 and 2.2: short videos, and pictures, which are videos of one frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from autoprog_diffusion.data.captions import Embeddings
from autoprog_diffusion.growth.errors import ConfigError, GrowthError

from ..parts import check_widths
from .base import Family


class Wan(Family):
    """Wan for text to pictures and short videos; latents have an axis of frames."""

    pipeline_class = "WanPipeline"
    transformer_class = "WanTransformer3DModel"
    vae_class = "AutoencoderKLWan"
    guidance_scale = 5.0
    most_text = 512
    optional = ("transformer_2",)
    schedulers = (*Family.schedulers, "UniPCMultistepScheduler", "DPMSolverMultistepScheduler")

    @property
    def patch(self) -> int:
        """Latents per token and side."""
        return self.config.patch_size[1]

    @property
    def vae_factor(self) -> int:
        """Pixels per latent and side."""
        return self.pipeline.vae_scale_factor_spatial

    def resolution(self) -> int:
        """Side of the images the pipeline was made for, in pixels: of 480p, its height; nothing says another one."""
        return 480

    def check(self, name: str) -> None:
        """Refuse parts that do not fit each other; `name` is the pipeline's.

        Raises:
            GrowthError: The message names the values.
        """
        if self.pipeline.transformer_2 is not None or self.pipeline.config.boundary_ratio is not None:
            raise GrowthError(
                f"{name} has two transformers, one for much noise and one for little, and one is trained here: choose "
                "a Wan with one, for example Wan2.1-T2V-1.3B or Wan2.2-TI2V-5B."
            )
        super().check(name)

    def latent_channels(self) -> int:
        """Channels of the VAE's latents."""
        return self.pipeline.vae.config.z_dim

    def check_frames(self) -> None:
        """Refuse a number of frames that the VAE does not take: one, and then whole steps of its own.

        Raises:
            ConfigError: The message names the number and the nearest one.
        """
        step = self.pipeline.vae_scale_factor_temporal
        if self.frames < 1 or (self.frames - 1) % step:
            near = max(0, round((self.frames - 1) / step)) * step + 1
            raise ConfigError(
                f"--num_frames {self.frames} is not allowed: this VAE takes one frame and {step} for every further "
                f"latent. Use {near}."
            )

    def check_text(self, name: str) -> None:
        """Refuse text encoders that do not fit the transformer.

        Raises:
            GrowthError: The message names both widths.
        """
        check_widths(
            name,
            text=self.pipeline.text_encoder.config.d_model,
            wanted=self.config.text_dim,
            setting="text_dim",
        )

    def encode(self, captions: Sequence[str], length: int) -> Embeddings:
        """Captions -> (len, length, D) tokens, zeros in the place of padding, and nothing pooled."""
        tokens, _ = self.pipeline.encode_prompt(
            list(captions),
            do_classifier_free_guidance=False,
            max_sequence_length=length,
            device=self.pipeline.text_encoder.device,
        )
        return tokens, tokens.new_zeros(len(tokens), 0)

    def predict(self, denoiser: Any, noisy: Tensor, times: Tensor, *, tokens: Tensor, pooled: Tensor) -> Tensor:
        """The denoiser's output, (N, C, f, h, w) as `noisy`; `times` (N,) in [0, 1]."""
        del pooled
        times = times * self.pipeline.scheduler.config.num_train_timesteps
        if self.pipeline.config.expand_timesteps:
            # Wan 2.2 TI2V is told the time of every token.
            frames, height, width = noisy.shape[2:]
            times = times[:, None].expand(-1, frames * (height // self.patch) * (width // self.patch))
        return denoiser(
            hidden_states=noisy,
            timestep=times,
            encoder_hidden_states=tokens,
            return_dict=False,
        )[0]

    def drawing(self, scale: float, length: int) -> dict[str, Any]:
        """Arguments of the pipeline's call; a picture is a video of one frame."""
        return {**super().drawing(scale, length), "num_frames": self.frames, "output_type": "pil"}

    def pictures(self, output: Any) -> list[Image.Image]:
        """The first frame of every video."""
        return [frames[0] for frames in output.frames]
