"""Flow-matching pipelines, SD3 and Flux: loading, cached text embeddings, pictures, and the training loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor, nn

from autoprog_diffusion.data.captions import Captions, Embeddings
from autoprog_diffusion.data.latents import Batch, Latents
from autoprog_diffusion.evaluation.draws import Draw
from autoprog_diffusion.growth.errors import ConfigError, GrowthError

from .flow_families import FAMILIES, SD3, Flux, shift_time, stage_shift
from .loading import load_as, pipeline_class, pipeline_config
from .noise_schedule import check_flow
from .objective import NoiseSettings, sample_times
from .parts import check_vae
from .source import is_single_file


if TYPE_CHECKING:
    from autoprog_diffusion.growth import GrowthScheduler

MOST_TEXT = 512  # tokens that a T5 encoder of these pipelines takes
# Family by the name of its pipeline's class.
FAMILY_OF = {family.pipeline_class.__name__: family for family in FAMILIES}
_ALLOWED = f"only {list(FAMILY_OF)} are trained by flow matching here."


@dataclass(frozen=True)
class FlowSettings:
    """Flow matching."""

    weighting_scheme: Literal["sigma_sqrt", "logit_normal", "mode", "cosmap", "none"] = "logit_normal"
    """How times are drawn, and losses weighted."""
    logit_mean: float = 0.0
    """Mean of the logit-normal scheme."""
    logit_std: float = 1.0
    """Standard deviation of the logit-normal scheme."""
    mode_scale: float = 1.29
    """Scale of the mode scheme."""
    guidance: float = 1.0
    """Value of the guidance embedding in training, for Flux.1 dev."""
    max_sequence_length: int | None = None
    """Tokens of the T5 encoder [the pipeline's own: 256 for SD3, 512 for Flux]."""
    proportion_empty_prompts: float = 0.0
    """Probability of training an image without its caption, for classifier-free guidance."""


def load_flow(name: str, **hub: str | None) -> Any:
    """An SD3 or Flux pipeline in float32, by its folder or Hub name and options of `from_pretrained`.

    Raises:
        GrowthError: It cannot be loaded, or is another kind of pipeline.
    """
    kind = pipeline_class(name, **hub)
    if kind not in FAMILY_OF:
        raise GrowthError(f"{name} is a {kind}: {_ALLOWED}")
    words = f"a {kind} (a Diffusers folder with transformer, vae, text encoders, tokenizers and scheduler)"
    left_out: dict[str, None] = {}
    if FAMILY_OF[kind] is SD3:
        # SD3 works without its third text encoder; Diffusers loads what was saved that way only if told so.
        index = {} if is_single_file(name) else pipeline_config(name, **hub)
        parts = ("text_encoder_3", "tokenizer_3")
        left_out = {part: None for part in parts if index.get(part, (None,))[0] is None}
    pipeline = load_as(FAMILY_OF[kind].pipeline_class, words, name, **hub, **left_out)
    check_vae(name, pipeline.vae, ("shift_factor",))
    check_flow(name, pipeline.scheduler)
    flow_family(pipeline).check(name)
    return pipeline


def flow_family(pipeline: Any, guidance: float = 1.0) -> SD3 | Flux:
    """The family of the pipeline.

    Raises:
        GrowthError: It is neither SD3 nor Flux.
    """
    for family in FAMILIES:
        if isinstance(pipeline, family.pipeline_class):
            return family(pipeline, guidance)
    raise GrowthError(f"a {type(pipeline).__name__} was given: {_ALLOWED}")


def text_length(pipeline: Any, max_sequence_length: int | None) -> int:
    """Tokens of the T5 encoder; None takes the pipeline's own number."""
    if max_sequence_length is not None:
        return max_sequence_length
    return flow_family(pipeline).most_text


@dataclass(eq=False)
class FlowMatching:
    """Training task of an SD3 or Flux pipeline: batches to losses.

    Attributes:
        pipeline: Its text encoders are frozen and moved to the device.
        latents: Of the training images; their data has a column `text`.
        flow: Settings of the objective.
        noise: Only its `timestep_sampling` is used; the other settings belong to noise prediction.

    Raises:
        ConfigError: A setting is out of range, or belongs to noise prediction.
    """

    pipeline: Any
    latents: Latents
    flow: FlowSettings
    noise: NoiseSettings
    shift = 1.0  # of time, in the stage

    def __post_init__(self) -> None:
        latents = self.latents
        flow = self.flow
        self.resolution = latents.resolution
        self.family = flow_family(self.pipeline, flow.guidance)
        self._length = text_length(self.pipeline, flow.max_sequence_length)
        self._check()
        self.captions = Captions(
            latents.data["text"][:],
            self._encode,
            text_encoders(self.pipeline),
            latents.accelerator,
            folder=latents.folder,
            empty=flow.proportion_empty_prompts,
            dtype=latents.dtype,
        )

    def enter_stage(self, growth: GrowthScheduler) -> None:
        """Get the caches of the stage's resolution ready, and the shift of time that belongs to it."""
        self.captions.ready()
        self.latents.enter_stage(growth)
        tokens = self._image_tokens(self.latents.side)
        full_tokens = self._image_tokens(self.resolution)
        self.shift = stage_shift(self.pipeline.scheduler.config, tokens, full_tokens)

    def loss(self, denoiser: Any, batch: Batch) -> Tensor:
        """Flow-matching loss of one batch, () float32.

        Args:
            denoiser: The prepared transformer.
            batch: As `Latents.draw` takes it.
        """
        latents = self.latents.draw(batch)
        text = self.captions.draw(batch["index"], batch.get("draw"))
        noise = torch.randn_like(latents)
        sigmas = self._draw_times(len(latents)).to(latents.device)
        return self._errors(denoiser, latents, noise, sigmas=sigmas, text=text).mean()

    def held_out_losses(self, denoiser: Any, batch: Batch, draw: Draw) -> Tensor:
        """The loss of every sample with the noise and the times of a draw, (N,) float32; no caption is dropped.

        Args:
            denoiser: The transformer.
            batch: As `Latents.draw` takes it.
            draw: Of the batch.
        """
        latents = self.latents.draw(batch, partial(draw.noise, stream=1))
        with self.captions.all_kept():
            text = self.captions.draw(batch["index"], batch.get("draw"))
        sigmas = self._times_at(draw.times).to(latents)
        return self._errors(denoiser, latents, draw.noise(latents), sigmas=sigmas, text=text).mean(dim=(1, 2, 3))

    def _errors(self, denoiser: Any, latents: Tensor, noise: Tensor, *, sigmas: Tensor, text: Embeddings) -> Tensor:
        """Weighted squared errors of the velocity, (N, C, h, w) float32, at (N,) times."""
        tokens, pooled = text
        mix = sigmas.view(-1, 1, 1, 1)
        noisy = (1 - mix) * latents + mix * noise
        velocity = self.family.velocity(denoiser, noisy, sigmas, tokens=tokens, pooled=pooled)
        error = (velocity.float() - (noise - latents).float()).square()
        weights = compute_loss_weighting_for_sd3(self.flow.weighting_scheme, sigmas=mix)
        return weights * error

    def _image_tokens(self, side: int) -> int:
        """Tokens of an image with a side of so many pixels."""
        pixels = self.pipeline.vae_scale_factor * self.family.patch  # per token and side
        return (side // pixels) ** 2

    def _draw_times(self, count: int) -> Tensor:
        """(N,) times in (0, 1), 1 being noise: the density of Diffusers' script, shifted for the resolution."""
        flow = self.flow
        draw = partial(
            compute_density_for_timestep_sampling,
            flow.weighting_scheme,
            logit_mean=flow.logit_mean,
            logit_std=flow.logit_std,
            mode_scale=flow.mode_scale,
        )
        return self._from_density(sample_times(draw, count, self.noise.timestep_sampling))

    def _times_at(self, shares: Tensor) -> Tensor:
        """(N,) times below which these shares of the training's times lie: `_draw_times` without chance."""
        flow = self.flow
        if flow.weighting_scheme == "logit_normal":
            density = (flow.logit_mean - flow.logit_std * torch.special.ndtri(shares)).sigmoid()
        elif flow.weighting_scheme == "mode":
            density = 1 - shares - flow.mode_scale * ((math.pi * shares / 2).cos() ** 2 - 1 + shares)
        else:
            density = 1 - shares
        return self._from_density(density)

    def _from_density(self, density: Tensor) -> Tensor:
        """(N,) times of draws of the density."""
        # The script takes the draw as a place in the scheduler's list of times, which begins with noise.
        least = 1 / self.pipeline.scheduler.config.num_train_timesteps
        return shift_time((1 - density).clamp(least, 1.0), self.shift)

    def _encode(self, captions: list[str]) -> Embeddings:
        return self.family.encode(captions, self._length)

    def _check(self) -> None:
        """Refuse settings of another objective, and those out of range."""
        for name in ("snr_gamma", "prediction_type", "noise_offset", "input_perturbation"):
            if value := getattr(self.noise, name):
                raise ConfigError(f"--{name} {value} belongs to noise prediction; flow matching has no such setting.")
        if not 0 <= self._length <= MOST_TEXT:
            raise ConfigError(f"--max_sequence_length {self._length} is not allowed: use 0 to {MOST_TEXT}.")
        largest = self.family.largest()
        if largest is not None and self.resolution > largest:
            raise ConfigError(
                f"--resolution {self.resolution} is not allowed: this transformer's table of positions ends at "
                f"{largest} pixels. Use {largest} or less."
            )
        if self.flow.logit_std <= 0:
            raise ConfigError(f"--logit_std {self.flow.logit_std} is not allowed: use a number above 0.")


def text_encoders(pipeline: Any) -> list[nn.Module]:
    """The pipeline's text encoders, those that it has."""
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    return list(filter(None, (getattr(pipeline, name, None) for name in names)))
