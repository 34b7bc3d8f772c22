"""Class-conditional DiT pipelines: loading, new classes, pictures, and the training loss (the paper's experiment)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from PIL import Image
from torch import Tensor

from autoprog_diffusion.data.labelled import class_names
from autoprog_diffusion.data.latents import Batch, Latents
from autoprog_diffusion.evaluation.draws import Draw
from autoprog_diffusion.growth.errors import ConfigError, GrowthError
from autoprog_diffusion.training.samples import sampling, seeds

from .dit_labels import NULL_LABEL, fit_labels, keep_labels, label_texts, pad_labels, stop_label_dropout
from .learned_variance import loss_with_variance
from .loading import load_as, pipeline_class
from .noise_schedule import adopt_schedule, check_denoising, training_scheduler
from .objective import NoiseSettings, NoisyBatch, add_drawn_noise, add_noise
from .parts import check_channels, check_class, check_vae


if TYPE_CHECKING:
    from autoprog_diffusion.growth import GrowthScheduler


@dataclass(frozen=True)
class ClassSettings:
    """Classes."""

    label_column: str = "label"
    """Column that holds the classes: names or numbers."""
    class_dropout: float = 0.1
    """Probability of training an image without its class, for classifier-free guidance."""
    keep_classes: bool = False
    """Train the checkpoint's own classes, found by name, instead of replacing them by those of the data."""
    variance_loss: bool = True
    """Train the variance of a model that predicts one, by the variational bound."""


def load_dit(name: str, **hub: str | None) -> DiTPipeline:
    """A DiT pipeline in float32, by its folder or Hub name and options of `from_pretrained`.

    Raises:
        GrowthError: It cannot be loaded, or is another kind of pipeline.
    """
    kind = pipeline_class(name, **hub)
    if kind != DiTPipeline.__name__:
        raise GrowthError(f"{name} is a {kind}: only a {DiTPipeline.__name__} is trained on classes here.")
    words = "a DiT pipeline (a Diffusers folder with transformer, vae and scheduler)"
    pipeline = load_as(DiTPipeline, words, name, **hub)
    check_class(
        name,
        part="transformer",
        model=pipeline.transformer,
        kinds=(DiTTransformer2DModel,),
    )
    check_vae(name, pipeline.vae)
    check_channels(
        name,
        words="transformer",
        config=pipeline.transformer.config,
        vae=pipeline.vae,
        outputs=(1, 2),
    )
    check_denoising(name, pipeline.scheduler)
    return pipeline


def vae_factor(pipeline: DiTPipeline) -> int:
    """Pixels per latent; DiTPipeline does not say it itself."""
    return 2 ** (len(pipeline.vae.config.block_out_channels) - 1)


def set_classes(pipeline: DiTPipeline, names: Sequence[str], *, keep: bool = False, seed: int = 0) -> dict[str, int]:
    """Give the pipeline the classes of the data, in place, and return their rows by name.

    The pipeline stays plain: `id2label` names the classes, and guidance works in DiTPipeline as it is.

    Args:
        pipeline: Its label table changes.
        names: Classes of the data.
        keep: Train the checkpoint's own classes, found by name, instead of replacing them.
        seed: Of the new rows.

    Raises:
        LabelError: The checkpoint lacks a class that is to be kept.
    """
    known = dict(pipeline.labels)
    if keep:
        ids = keep_labels(names, known)
        pad_labels(pipeline.transformer)
    else:
        ids = fit_labels(
            pipeline.transformer,
            names=names,
            labels=known,
            seed=seed,
        )
        known = {}
    rows = dict(zip(names, ids))
    pipeline.labels = {**known, **rows}
    pipeline.register_to_config(id2label=label_texts(pipeline.labels))
    stop_label_dropout(pipeline.transformer)
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


@dataclass(eq=False)
class ClassConditional:
    """Training task of a DiT pipeline: batches to losses.

    Attributes:
        pipeline: With the classes of the data.
        latents: Of the training images; their data has a column `label`.
        noise: Settings of the objective.
        classes: Dropout of classes, and whether a learned variance is trained.

    Raises:
        ConfigError: DiTPipeline could not draw at this resolution, or there is no loss for the prediction type.
    """

    pipeline: DiTPipeline
    latents: Latents
    noise: NoiseSettings
    classes: ClassSettings

    def __post_init__(self) -> None:
        self.resolution = self.latents.resolution
        self.noise_scheduler = training_scheduler(self.pipeline, self.noise.prediction_type)
        data = self.latents.data
        rows = torch.tensor([self.pipeline.labels[name] for name in class_names(data)])
        self.labels = rows[torch.tensor(data["label"])]
        config = self.pipeline.transformer.config
        self.trains_variance = self.classes.variance_loss and config.out_channels == 2 * config.in_channels
        self._check(config.sample_size * vae_factor(self.pipeline))

    def enter_stage(self, growth: GrowthScheduler) -> None:
        """Get the cache of the stage's resolution ready; DiT's position embedding is computed for any resolution.

        From now on the pipeline samples what is trained.
        """
        adopt_schedule(self.pipeline, self.noise_scheduler)
        self.latents.enter_stage(growth)

    def loss(self, denoiser: Any, batch: Batch) -> Tensor:
        """Denoising loss of one batch, () float32, plus the variational bound of a learned variance.

        Args:
            denoiser: The prepared transformer.
            batch: As `Latents.draw` takes it.
        """
        clean = self.latents.draw(batch)
        labels = self._drawn_labels(batch["index"].cpu(), clean.device)
        return self._objective(
            denoiser,
            clean,
            add_noise(clean, self.noise_scheduler, self.noise),
            labels=labels,
        )

    def held_out_losses(self, denoiser: Any, batch: Batch, draw: Draw) -> Tensor:
        """The loss of every sample with the noise and the timesteps of a draw, (N,) float32; no class is dropped.

        Args:
            denoiser: The transformer.
            batch: As `Latents.draw` takes it.
            draw: Of the batch.
        """
        clean = self.latents.draw(batch, partial(draw.noise, stream=1))
        return self._objective(
            denoiser,
            clean,
            add_drawn_noise(clean, self.noise_scheduler, draw),
            labels=self.labels[batch["index"].cpu()].to(clean.device),
            each=True,
        )

    def _objective(
        self,
        denoiser: Any,
        clean: Tensor,
        noisy: NoisyBatch,
        *,
        labels: Tensor,
        each: bool = False,
    ) -> Tensor:
        """Error of the prediction, plus the variational bound where the variance is learned."""
        return loss_with_variance(
            denoiser(noisy.latents, timestep=noisy.timesteps, class_labels=labels, return_dict=False)[0],
            clean=clean,
            noisy=noisy,
            noise_scheduler=self.noise_scheduler,
            snr_gamma=self.noise.snr_gamma,
            trains_variance=self.trains_variance,
            each=each,
        )

    def _drawn_labels(self, rows: Tensor, device: torch.device) -> Tensor:
        """(N,) labels of the rows, some of them dropped for classifier-free guidance."""
        labels = self.labels[rows].to(device)
        dropped = torch.rand(len(labels), device=device) < self.classes.class_dropout
        return torch.where(dropped, NULL_LABEL, labels)

    def _check(self, own: int) -> None:
        if self.resolution != own:
            raise ConfigError(
                f"--resolution {self.resolution} is not allowed: this DiT draws images of {own} pixels only. Leave "
                "the flag out; earlier stages at a lower resolution are --resolutions."
            )
        dropout = self.classes.class_dropout
        if not 0 <= dropout < 1:
            raise ConfigError(f"--class_dropout {dropout} is not allowed: use a probability from 0 to below 1.")
        kind = self.noise_scheduler.config.prediction_type
        if self.trains_variance and kind != "epsilon":
            raise ConfigError(
                f"a learned variance with prediction_type={kind!r} has no loss here: it needs epsilon. Use "
                "--no-variance_loss to leave the variance as it is."
            )
