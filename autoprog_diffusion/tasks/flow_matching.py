"""Text-to-image transformers: loading, and the loss of flow matching; `families` has a row for each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import diffusers
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor, nn

from autoprog_diffusion.data.captions import Captions, Embeddings
from autoprog_diffusion.data.latents import Batch, Latents
from autoprog_diffusion.evaluation.draws import Draw
from autoprog_diffusion.growth.errors import ConfigError, GrowthError

from .families import FAMILY_OF, Family
from .families.shift import shift_time
from .families.text import check_length, fit_length
from .loading import load_as, pipeline_class, pipeline_config, recipe_for
from .objective import NoiseSettings, sample_times
from .source import is_single_file


if TYPE_CHECKING:
    from autoprog_diffusion.growth import GrowthScheduler


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
    """Value of the guidance embedding in training, for models that have one, such as Flux.1 dev."""
    max_sequence_length: int | None = None
    """Tokens of text [the pipeline's own: 256 for SD3, 512 for Flux, and so on]."""
    num_frames: int = 1
    """Frames of short videos, for Wan: 4 k + 1 of animated .webp, .gif or .png files [pictures]."""
    proportion_empty_prompts: float = 0.0
    """Probability of training an image without its caption, for classifier-free guidance."""


def load_flow(name: str, **hub: str | None) -> Any:
    """A pipeline of one of the families in float32, by its folder or Hub name and options of `from_pretrained`.

    Raises:
        GrowthError: It cannot be loaded, or is another kind of pipeline.
    """
    kind = pipeline_class(name, **hub)
    if kind not in FAMILY_OF:
        raise GrowthError(f"{name} is a {kind}: {_allowed(kind)}")
    row = FAMILY_OF[kind]
    found: Any = getattr(diffusers, kind, None)
    if found is None:
        raise GrowthError(f"{name} is a {kind}, which Diffusers {diffusers.__version__} does not have: update it.")
    words = f"a {kind} (a Diffusers folder with transformer, vae, text encoders, tokenizers and scheduler)"
    left_out: dict[str, None] = {}
    if row.optional:
        # Diffusers loads what was saved without such a part only if told so.
        index = {} if is_single_file(name) else pipeline_config(name, **hub)
        left_out = {part: None for part in row.optional if index.get(part, (None,))[0] is None}
    pipeline = load_as(found, words, name, **hub, **left_out)
    family = flow_family(pipeline)
    family.check(name)
    family.rest_idle()
    return pipeline


def flow_family(pipeline: Any, guidance: float = 1.0, frames: int = 1) -> Family:
    """The family of the pipeline; further arguments are its attributes.

    Raises:
        GrowthError: It is of no family.
    """
    for kind in type(pipeline).__mro__:
        if kind.__name__ in FAMILY_OF:
            return FAMILY_OF[kind.__name__](pipeline, guidance, frames)
    kind = type(pipeline).__name__
    raise GrowthError(f"a {kind} was given: {_allowed(kind)}")


def is_flow(pipeline: Any) -> bool:
    """Whether the pipeline is one of the families."""
    return any(kind.__name__ in FAMILY_OF for kind in type(pipeline).__mro__)


def text_length(pipeline: Any, max_sequence_length: int | None) -> int:
    """Tokens of text; None takes the pipeline's own number."""
    if max_sequence_length is not None:
        return max_sequence_length
    return flow_family(pipeline).most_text


def _allowed(kind: str) -> str:
    return f"only {list(FAMILY_OF)} are trained here. {recipe_for(kind)}"


@dataclass(eq=False)
class FlowMatching:
    """Training task of a flow-matching pipeline: batches to losses.

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
    shift = 1.0  # of time, in the stage, or of the latest batch where batches differ

    def __post_init__(self) -> None:
        latents = self.latents
        flow = self.flow
        self.resolution = latents.resolution
        self.family = flow_family(self.pipeline, flow.guidance, flow.num_frames)
        self._length = text_length(self.pipeline, flow.max_sequence_length)
        self._check()
        texts = latents.data["text"][:]
        self._length = fit_length(self.family, self._length, texts, latents.accelerator.print)
        self.captions = Captions(
            texts,
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
        self.shift = self.family.shift(tokens, full_tokens)

    def loss(self, denoiser: Any, batch: Batch) -> Tensor:
        """Flow-matching loss of one batch, () float32.

        Args:
            denoiser: The prepared transformer.
            batch: As `Latents.draw` takes it.
        """
        return self.errors(denoiser, batch).mean()

    def errors(self, denoiser: Any, batch: Batch) -> Tensor:
        """Weighted squared errors of the velocity, (N, C, ...) float32; arguments as `loss` takes them."""
        self._follow(batch)
        latents = self.latents.draw(batch)
        text = self.captions.draw(batch["index"], batch.get("draw"))
        noise = torch.randn_like(latents)
        sigmas = self._draw_times(len(latents)).to(latents.device)
        return self._errors(denoiser, latents, noise, sigmas=sigmas, text=text)

    def held_out_losses(self, denoiser: Any, batch: Batch, draw: Draw) -> Tensor:
        """The loss of every sample with the noise and the times of a draw, (N,) float32; no caption is dropped.

        Args:
            denoiser: The transformer.
            batch: As `Latents.draw` takes it.
            draw: Of the batch.
        """
        self._follow(batch)
        latents = self.latents.draw(batch, partial(draw.noise, stream=1))
        with self.captions.all_kept():
            text = self.captions.draw(batch["index"], batch.get("draw"))
        sigmas = self._times_at(draw.times).to(latents)
        return self._errors(denoiser, latents, draw.noise(latents), sigmas=sigmas, text=text).flatten(1).mean(dim=1)

    def _errors(self, denoiser: Any, latents: Tensor, noise: Tensor, *, sigmas: Tensor, text: Embeddings) -> Tensor:
        """Weighted squared errors of the velocity, (N, C, ...) float32, at (N,) times."""
        tokens, pooled = text
        mix = sigmas.view(-1, *[1] * (latents.dim() - 1))
        noisy = (1 - mix) * latents + mix * noise
        velocity = self.family.predict(denoiser, noisy, sigmas, tokens=tokens, pooled=pooled)
        error = (velocity.float() - (noise - latents).float()).square()
        weights = compute_loss_weighting_for_sd3(self.flow.weighting_scheme, sigmas=mix)
        return weights * error

    def _follow(self, batch: Batch) -> None:
        """Take the shift of time that belongs to the size of a batch, where batches differ."""
        if self.latents.plan is None:
            return
        height, width = self.latents.size_of(batch)
        token = self.family.token_side
        tokens = (height // token) * (width // token)
        # As many as if the bucket were enlarged like the square of its area: aspect ratios alone shift nothing.
        scale = self.resolution / self.latents.side_of(batch)
        self.shift = self.family.shift(tokens, tokens * scale**2)

    def _image_tokens(self, side: int) -> int:
        """Tokens of an image with a side of so many pixels."""
        return (side // self.family.token_side) ** 2

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
        check_length(self.family, self._length)
        self.family.check_frames()
        if self.flow.num_frames > 1 and not self.latents.cached:
            raise ConfigError("--no-cache_latents is not possible with --num_frames above 1: remove one of the flags.")
        self.latents.frames = self.flow.num_frames
        largest = self.family.largest()
        if largest is not None and self.resolution > largest:
            raise ConfigError(
                f"--resolution {self.resolution} is not allowed: this transformer's table of positions ends at "
                f"{largest} pixels. Use {largest} or less."
            )
        buckets = self.latents.plan.buckets if self.latents.plan else ()
        longest = max([max(bucket.height, bucket.width) for bucket in buckets], default=0)
        if largest is not None and longest > largest:
            raise ConfigError(
                f"--buckets has sides of {longest} pixels, and this transformer's table of positions ends at "
                f"{largest}: use a lower --max_aspect or --resolution."
            )
        if self.flow.logit_std <= 0:
            raise ConfigError(f"--logit_std {self.flow.logit_std} is not allowed: use a number above 0.")


def text_encoders(pipeline: Any) -> list[nn.Module]:
    """The pipeline's text encoders, those that it has."""
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    return list(filter(None, (getattr(pipeline, name, None) for name in names)))
