"""Flow-matching pipelines, SD3 and Flux: loading, cached text embeddings, pictures, and the training loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
import tyro
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from PIL import Image
from torch import Tensor, nn

from autoprog_diffusion.data.captions import Captions
from autoprog_diffusion.data.latents import Latents
from autoprog_diffusion.growth.errors import ConfigError, GrowthError
from autoprog_diffusion.training.arguments import Arguments
from autoprog_diffusion.training.samples import sampling, seeds

from .flow_families import FAMILIES, SD3, Flux, shift_time, stage_shift
from .loading import load_as, pipeline_class
from .objective import sample_times


if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator

    from autoprog_diffusion.growth import GrowthScheduler


_ALLOWED = f"only {[family.pipeline_class.__name__ for family in FAMILIES]} are trained by flow matching here."


@dataclass(frozen=True)
class FlowArguments:
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


@dataclass(frozen=True)
class FlowMatchingArguments(Arguments):
    """All groups of arguments, and flow matching."""

    flow: tyro.conf.OmitArgPrefixes[FlowArguments] = field(default_factory=FlowArguments)


def load_flow(name: str, args: Arguments) -> Any:
    """An SD3 or Flux pipeline in float32.

    Raises:
        GrowthError: The folder or Hub name cannot be loaded, or is another kind of pipeline.
    """
    name_of_class = pipeline_class(name, args)
    family = next((family for family in FAMILIES if family.pipeline_class.__name__ == name_of_class), None)
    if family is None:
        raise GrowthError(f"{name} is a {name_of_class}: {_ALLOWED}")
    words = f"a {name_of_class} (a Diffusers folder with transformer, vae, text encoders, tokenizers and scheduler)"
    options = _left_out(name, args) if family is SD3 else {}
    return load_as(family.pipeline_class, words, name, args, **options)


def _left_out(name: str, args: Arguments) -> dict[str, None]:
    """SD3 works without its third text encoder; Diffusers loads what was saved that way only if told so."""
    model = args.model
    index: Any = DiffusionPipeline.load_config(name, revision=model.revision, cache_dir=model.cache_dir)
    return {part: None for part in ("text_encoder_3", "tokenizer_3") if index.get(part, (None,))[0] is None}


def flow_family(pipeline: Any, guidance: float = 1.0) -> SD3 | Flux:
    """What is particular to the pipeline's kind.

    Raises:
        GrowthError: It is neither SD3 nor Flux.
    """
    for family in FAMILIES:
        if isinstance(pipeline, family.pipeline_class):
            return family(pipeline, guidance)
    raise GrowthError(f"a {type(pipeline).__name__} was given: {_ALLOWED}")


def draw_prompts(
    pipeline: Any, prompts: Sequence[str], *, size: int, steps: int, guidance: float, seed: int, length: int
) -> list[Image.Image]:
    """One image per prompt, every prompt with a seed of its own (`seed`, `seed + 1`, ...)."""
    with sampling(pipeline):
        return pipeline(
            list(prompts),
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=seeds(seed, len(prompts)),
            max_sequence_length=length,
        ).images


def text_length(pipeline: Any, args: FlowMatchingArguments) -> int:
    """Tokens of the T5 encoder."""
    length = args.flow.max_sequence_length
    return flow_family(pipeline).most_text if length is None else length


class FlowMatching:
    """What a training loop needs of an SD3 or Flux pipeline: batches in, loss out.

    Args:
        pipeline: Its VAE and text encoders are frozen and moved to the device.
        data: Columns `image` and `text`.
        args: The recipe's arguments.
        accelerator: Of the run.
        resolution: Side of the training images in pixels.

    Raises:
        ConfigError: A flag is out of range.
    """

    def __init__(
        self,
        pipeline: Any,
        data: datasets.Dataset,
        args: FlowMatchingArguments,
        accelerator: Accelerator,
        resolution: int,
    ) -> None:
        self.pipeline, self.args, self.resolution = pipeline, args, resolution
        self.family, self._length = flow_family(pipeline, args.flow.guidance), text_length(pipeline, args)
        self._check()
        self.latents = Latents(pipeline.vae, data, args, accelerator, resolution)
        empty = args.flow.proportion_empty_prompts
        self.captions = Captions(data["text"], self._encode, text_encoders(pipeline), args, accelerator, empty)
        self.shift = 1.0

    def enter_stage(self, growth: GrowthScheduler) -> None:
        """Get the caches of the stage's resolution ready, and the shift of time that belongs to it."""
        self.captions.ready()
        self.latents.enter_stage(growth)
        pixels = self.pipeline.vae_scale_factor * self.family.patch  # per token and side
        tokens, full_tokens = ((side // pixels) ** 2 for side in (self.latents.side, self.resolution))
        self.shift = stage_shift(self.pipeline.scheduler.config, tokens, full_tokens)

    def loss(self, denoiser: Any, batch: dict[str, Tensor]) -> Tensor:
        """Flow-matching loss of one batch, () float32.

        Args:
            denoiser: The prepared transformer.
            batch: As `Latents.draw` takes it.
        """
        latents = self.latents.draw(batch)
        tokens, pooled = self.captions.draw(batch["index"])
        noise, sigmas = torch.randn_like(latents), self._draw_times(len(latents)).to(latents.device)
        mix = sigmas.view(-1, 1, 1, 1)
        velocity = self.family.velocity(denoiser, (1 - mix) * latents + mix * noise, sigmas, tokens, pooled)
        error = (velocity.float() - (noise - latents).float()).square()
        return (compute_loss_weighting_for_sd3(self.args.flow.weighting_scheme, sigmas=mix) * error).mean()

    def _draw_times(self, count: int) -> Tensor:
        """(N,) times in (0, 1), 1 being noise: the density of Diffusers' script, shifted for the resolution."""
        flow = self.args.flow

        def draw(n: int) -> Tensor:
            settings = flow.weighting_scheme, n, flow.logit_mean, flow.logit_std, flow.mode_scale
            return compute_density_for_timestep_sampling(*settings)

        density = sample_times(draw, count, self.args.train)
        # The script takes the draw as a place in the scheduler's list of times, which begins with noise.
        least = 1 / self.pipeline.scheduler.config.num_train_timesteps
        return shift_time((1 - density).clamp(least, 1.0), self.shift)

    def _encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        return self.family.encode(captions, self._length)

    def _check(self) -> None:
        flow, most = self.args.flow, 512
        for name in ("snr_gamma", "prediction_type", "noise_offset", "input_perturbation"):
            if value := getattr(self.args.train, name):
                raise ConfigError(f"--{name} {value} belongs to noise prediction; flow matching has no such setting.")
        if not 0 <= flow.proportion_empty_prompts <= 1:
            value = flow.proportion_empty_prompts
            raise ConfigError(f"--proportion_empty_prompts {value} is not allowed: use a probability in [0, 1].")
        if not 0 <= self._length <= most:
            raise ConfigError(f"--max_sequence_length {self._length} is not allowed: use 0 to {most}.")
        if flow.logit_std <= 0:
            raise ConfigError(f"--logit_std {flow.logit_std} is not allowed: use a number above 0.")


def text_encoders(pipeline: Any) -> list[nn.Module]:
    """The pipeline's text encoders, those that it has."""
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    return [module for name in names if (module := getattr(pipeline, name, None)) is not None]
