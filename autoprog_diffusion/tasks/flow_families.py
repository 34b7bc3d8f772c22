"""Differences between SD3 and Flux: text, the call of the denoiser, and the shift of time with the resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline, calculate_shift
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from torch import Tensor

from autoprog_diffusion.data.captions import Embeddings
from autoprog_diffusion.growth.errors import GrowthError

from .parts import check_channels, check_class, check_widths


@dataclass(frozen=True)
class _Family:
    """A pipeline, and the value of the guidance embedding of a guidance-distilled model (Flux.1 dev; SD3 has none)."""

    pipeline: Any
    guidance: float


class SD3(_Family):
    """Stable Diffusion 3 and 3.5. Its position embedding is cropped to the stage's resolution, as in the pipeline."""

    pipeline_class = StableDiffusion3Pipeline
    guidance_scale = 7.0  # the pipeline's own, for pictures
    most_text = 256  # T5 tokens, as the pipeline takes by itself

    @property
    def patch(self) -> int:
        """Latents per token and side."""
        return self.pipeline.transformer.config.patch_size

    def resolution(self) -> int:
        """Side of the images the pipeline was made for, in pixels."""
        return self.pipeline.transformer.config.sample_size * self.pipeline.vae_scale_factor

    def check(self, name: str) -> None:
        """Refuse a transformer that does not fit the VAE or the text encoders; `name` is the pipeline's.

        Raises:
            GrowthError: The message names the values.
        """
        pipeline = self.pipeline
        check_class(
            name,
            part="transformer",
            model=pipeline.transformer,
            kinds=(SD3Transformer2DModel,),
        )
        config = pipeline.transformer.config
        check_channels(
            name,
            words="transformer",
            config=config,
            vae=pipeline.vae,
            outputs=(1,),
        )
        pooled = pipeline.text_encoder.config.projection_dim + pipeline.text_encoder_2.config.projection_dim
        check_widths(
            name,
            text=pooled,
            wanted=config.pooled_projection_dim,
            setting="pooled_projection_dim",
        )
        if pipeline.text_encoder_3 is not None:
            width = pipeline.text_encoder_3.config.d_model
            check_widths(
                name,
                text=width,
                wanted=config.joint_attention_dim,
                setting="joint_attention_dim",
            )

    def largest(self) -> int | None:
        """Largest side of an image in pixels: the position embedding is a table."""
        patches = self.pipeline.transformer.config.pos_embed_max_size
        return patches and patches * self.patch * self.pipeline.vae_scale_factor

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

    def velocity(self, denoiser: Any, noisy: Tensor, sigmas: Tensor, *, tokens: Tensor, pooled: Tensor) -> Tensor:
        """The denoiser's output, (N, C, h, w) as `noisy`; `sigmas` (N,) in [0, 1]."""
        return denoiser(
            hidden_states=noisy,
            timestep=sigmas * self.pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            return_dict=False,
        )[0]


class Flux(_Family):
    """Flux.1. Rotary positions count patches from the corner, at every resolution, as in the pipeline."""

    pipeline_class = FluxPipeline
    guidance_scale = 3.5
    most_text = 512
    patch = 2  # latents are packed in twos

    def resolution(self) -> int:
        """Side of the images the pipeline was made for, in pixels."""
        return self.pipeline.default_sample_size * self.pipeline.vae_scale_factor

    def check(self, name: str) -> None:
        """Refuse a transformer that does not fit the VAE or the text encoders; `name` is the pipeline's.

        Raises:
            GrowthError: The message names the values.
        """
        pipeline = self.pipeline
        check_class(
            name,
            part="transformer",
            model=pipeline.transformer,
            kinds=(FluxTransformer2DModel,),
        )
        config = pipeline.transformer.config
        packed = pipeline.vae.config.latent_channels * self.patch**2
        found = (config.in_channels, config.out_channels or config.in_channels)
        if found != (packed, packed):
            raise GrowthError(
                f"the transformer of {name} takes {found[0]} channels and gives {found[1]}, and its VAE gives "
                f"{packed} when packed: models for filling, depth and other images as input are not trained."
            )
        check_widths(
            name, pipeline.text_encoder.config.hidden_size, config.pooled_projection_dim, "pooled_projection_dim"
        )
        check_widths(
            name,
            text=pipeline.text_encoder_2.config.d_model,
            wanted=config.joint_attention_dim,
            setting="joint_attention_dim",
        )

    def largest(self) -> None:
        """Largest side of an image in pixels: there is none."""

    def encode(self, captions: Sequence[str], length: int) -> Embeddings:
        """Captions -> (len, L, D) tokens and (len, P) pooled."""
        # The pipeline would ask its first part, which may lie elsewhere.
        device = self.pipeline.text_encoder.device
        encoded = self.pipeline.encode_prompt(list(captions), None, device=device, max_sequence_length=length)
        tokens, pooled, _ = encoded
        return tokens, pooled

    def velocity(self, denoiser: Any, noisy: Tensor, sigmas: Tensor, *, tokens: Tensor, pooled: Tensor) -> Tensor:
        """The denoiser's output, (N, C, h, w) as `noisy`; `sigmas` (N,) in [0, 1]."""
        count, channels, height, width = noisy.shape
        place = {"device": noisy.device, "dtype": noisy.dtype}
        guidance = None
        if self.pipeline.transformer.config.guidance_embeds:
            guidance = torch.full((count,), self.guidance, **place)
        output = denoiser(
            hidden_states=FluxPipeline._pack_latents(noisy, count, channels, height, width),
            timestep=sigmas,
            guidance=guidance,
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            txt_ids=torch.zeros(tokens.shape[1], 3, **place),
            img_ids=FluxPipeline._prepare_latent_image_ids(count, height // 2, width // 2, **place),
            return_dict=False,
        )[0]
        factor = self.pipeline.vae_scale_factor
        return FluxPipeline._unpack_latents(output, height * factor, width * factor, factor)


FAMILIES: tuple[type[SD3] | type[Flux], ...] = (SD3, Flux)


def stage_shift(config: Any, tokens: int, full_tokens: int) -> float:
    """Shift s of time at a stage's resolution: sigma becomes s * sigma / (1 + (s - 1) * sigma).

    With dynamic shifting (Flux) s follows the number of image tokens as it does in the pipeline: mu is linear in it,
    s = exp(mu). Otherwise (SD3) the scheduler's own shift belongs to the full resolution, and SD3's rule for another
    one (arXiv 2403.03206, section 5.3.2) multiplies it by sqrt(tokens / full_tokens): fewer tokens need less noise to
    lose the same signal.

    Args:
        config: Of the pipeline's `FlowMatchEulerDiscreteScheduler`.
        tokens: Image tokens at the stage's resolution.
        full_tokens: Image tokens at the run's resolution.
    """
    if not config.get("use_dynamic_shifting"):
        return config.shift * math.sqrt(tokens / full_tokens)
    bounds = (config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
    mu = calculate_shift(tokens, *bounds)
    return mu if config.time_shift_type == "linear" else math.exp(mu)


def shift_time(sigmas: Tensor, shift: float) -> Tensor:
    """(N,) times in [0, 1], 1 being noise, moved towards it by a shift above 1."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)
