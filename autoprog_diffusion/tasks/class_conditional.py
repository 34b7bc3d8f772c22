"""Class-conditional DiT pipelines: loading, new classes, pictures, and the training loss (the paper's experiment)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import tyro
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from PIL import Image
from torch import Tensor

from autoprog_diffusion.data.labelled import class_names
from autoprog_diffusion.data.latents import Latents
from autoprog_diffusion.growth.errors import ConfigError, GrowthError
from autoprog_diffusion.training.arguments import Arguments
from autoprog_diffusion.training.samples import sampling, seeds

from .dit_labels import NULL_LABEL, fit_labels, keep_labels, pad_labels, stop_label_dropout
from .learned_variance import variational_bound
from .loading import load_as, pipeline_class
from .objective import denoising_loss, denoising_target, draw_noise, draw_timesteps
from .stable_diffusion import training_scheduler


if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator

    from autoprog_diffusion.growth import GrowthScheduler


@dataclass(frozen=True)
class ClassArguments:
    """Classes."""

    label_column: str = "label"
    """Column that holds the classes: names or numbers."""
    class_dropout: float = 0.1
    """Probability of training an image without its class, for classifier-free guidance."""
    keep_classes: bool = False
    """Train the checkpoint's own classes, found by name, instead of replacing them by those of the data."""
    variance_loss: bool = True
    """Train the variance of a model that predicts one, by the variational bound."""


@dataclass(frozen=True)
class ClassConditionalArguments(Arguments):
    """All groups of arguments, and the classes."""

    classes: tyro.conf.OmitArgPrefixes[ClassArguments] = field(default_factory=ClassArguments)


def load_dit(name: str, args: Arguments) -> DiTPipeline:
    """A DiT pipeline in float32.

    Raises:
        GrowthError: The folder or Hub name cannot be loaded, or is another kind of pipeline.
    """
    kind = pipeline_class(name, args)
    if kind != DiTPipeline.__name__:
        raise GrowthError(f"{name} is a {kind}: only a {DiTPipeline.__name__} is trained on classes here.")
    return load_as(DiTPipeline, "a DiT pipeline (a Diffusers folder with transformer, vae and scheduler)", name, args)


def vae_factor(pipeline: DiTPipeline) -> int:
    """Pixels per latent; DiTPipeline does not say it itself."""
    return 2 ** (len(pipeline.vae.config.block_out_channels) - 1)


def set_classes(pipeline: DiTPipeline, names: Sequence[str], args: ClassConditionalArguments) -> dict[str, int]:
    """Give the pipeline the classes of the data, in place, and return their rows by name.

    The pipeline stays plain: `id2label` names the classes, and guidance works in DiTPipeline as it is.

    Raises:
        LabelError: `--keep_classes`, and the checkpoint lacks one.
    """
    transformer, known = pipeline.transformer, dict(pipeline.labels)
    if args.classes.keep_classes:
        ids = keep_labels(names, known)
        pad_labels(transformer)
    else:
        ids, known = fit_labels(transformer, names, known, args.train.seed), {}
    rows = dict(zip(names, ids))
    pipeline.labels = {**known, **rows}
    # The keys are text in JSON; a class of several names has them with commas between.
    id2label: dict[str, str] = {}
    for name, row in pipeline.labels.items():
        id2label[str(row)] = f"{id2label[str(row)]}, {name}" if str(row) in id2label else name
    pipeline.register_to_config(id2label=id2label)
    stop_label_dropout(transformer)
    return rows


def draw_classes(
    pipeline: DiTPipeline, labels: Sequence[int], *, steps: int, guidance: float, seed: int
) -> list[Image.Image]:
    """One image per label, every image with a seed of its own (`seed`, `seed + 1`, ...)."""
    with sampling(pipeline):
        output: Any = pipeline(
            list(labels), guidance_scale=guidance, num_inference_steps=steps, generator=seeds(seed, len(labels))
        )
    return output.images


class ClassConditional:
    """What a training loop needs of a DiT pipeline: batches in, loss out.

    Args:
        pipeline: With the classes of the data; its VAE is frozen and moved to the device.
        data: Columns `image` and `label`.
        args: The recipe's arguments.
        accelerator: Of the run.
        resolution: Side of the training images in pixels.

    Raises:
        ConfigError: DiTPipeline could not draw at this resolution, or the model predicts what cannot be trained.
    """

    def __init__(
        self,
        pipeline: DiTPipeline,
        data: datasets.Dataset,
        args: ClassConditionalArguments,
        accelerator: Accelerator,
        resolution: int,
    ) -> None:
        self.pipeline, self.args, self.resolution = pipeline, args, resolution
        self.noise_scheduler = training_scheduler(pipeline, args)
        self.latents = Latents(pipeline.vae, data, args, accelerator, resolution)
        rows = torch.tensor([pipeline.labels[name] for name in class_names(data)])
        self.labels = rows[torch.tensor(data["label"])]
        config = pipeline.transformer.config
        self.learns_variance = config.out_channels == 2 * config.in_channels
        self._check(config.sample_size * vae_factor(pipeline))

    def enter_stage(self, growth: GrowthScheduler) -> None:
        """Get the cache of the stage's resolution ready; DiT's position embedding is computed for any resolution."""
        self.latents.enter_stage(growth)

    def loss(self, denoiser: Any, batch: dict[str, Tensor]) -> Tensor:
        """Denoising loss of one batch, () float32, plus the variational bound of a learned variance.

        Args:
            denoiser: The prepared transformer.
            batch: As `Latents.draw` takes it.
        """
        latents, scheduler = self.latents.draw(batch), self.noise_scheduler
        labels = self.labels[batch["index"].cpu()].to(latents.device)
        dropped = torch.rand(len(labels), device=labels.device) < self.args.classes.class_dropout
        labels = torch.where(dropped, NULL_LABEL, labels)
        noise, mixed = draw_noise(latents, self.args.train)
        timesteps = draw_timesteps(len(latents), scheduler, self.args.train, latents.device)
        noisy = scheduler.add_noise(latents, mixed, timesteps)
        output = denoiser(noisy, timestep=timesteps, class_labels=labels, return_dict=False)[0]
        prediction, variance = output.chunk(2, dim=1) if self.learns_variance else (output, None)
        target = denoising_target(scheduler, latents, noise, timesteps)
        loss = denoising_loss(prediction, target, timesteps, scheduler, self.args.train.snr_gamma)
        if variance is None or not self.args.classes.variance_loss:
            return loss
        return loss + variational_bound(prediction, variance, latents, noisy, timesteps, scheduler)

    def _check(self, own: int) -> None:
        if self.resolution != own:
            raise ConfigError(
                f"--resolution {self.resolution} is not allowed: this DiT draws images of {own} pixels only. Leave "
                "the flag out; earlier stages at a lower resolution are --resolutions."
            )
        dropout = self.args.classes.class_dropout
        if not 0 <= dropout < 1:
            raise ConfigError(f"--class_dropout {dropout} is not allowed: use a probability from 0 to below 1.")
        kind = self.noise_scheduler.config.prediction_type
        if self.learns_variance and self.args.classes.variance_loss and kind != "epsilon":
            raise ConfigError(
                f"a learned variance with prediction_type={kind!r} has no loss here: it needs epsilon. Use "
                "--no-variance_loss to leave the variance as it is."
            )
