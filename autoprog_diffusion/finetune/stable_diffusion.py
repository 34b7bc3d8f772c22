"""Stable-Diffusion-class pipelines: loading, cached latents and text embeddings, and the training loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from autoprog_diffusion.growth.errors import ConfigError, GrowthError
from autoprog_diffusion.growth.resize import stage_size

from .arguments import Arguments
from .cache import ArrayCache, build_cache, module_fingerprint, text_fingerprint
from .images import read_image, to_pixels
from .objective import denoising_loss, denoising_target, draw_noise


if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator

    from autoprog_diffusion.growth import GrowthScheduler


def load_pipeline(name: str, args: Arguments) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline without its safety checker, in float32.

    Raises:
        GrowthError: The folder or Hub name cannot be loaded, or is another kind of pipeline.
    """
    options: dict[str, Any] = {
        "safety_checker": None,
        "requires_safety_checker": False,
        "cache_dir": args.model.cache_dir,
    }
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            name, revision=args.model.revision, variant=args.model.variant, **options
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise GrowthError(
            f"{name} cannot be loaded as a Stable Diffusion pipeline (a Diffusers folder with unet, vae, "
            f"text_encoder, tokenizer and scheduler): {error}"
        ) from error
    return pipeline.to(torch.float32)


def training_scheduler(pipeline: StableDiffusionPipeline, args: Arguments) -> Any:
    """The DDPM scheduler with the settings the pipeline was trained with."""
    scheduler: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
    if args.train.prediction_type is not None:
        scheduler.register_to_config(prediction_type=args.train.prediction_type)
    return scheduler


class TextToImage:
    """What a training loop needs of a Stable-Diffusion-class pipeline: batches in, loss out.

    Args:
        pipeline: Its VAE and text encoder are frozen and moved to the device.
        data: Columns `image` and `text`.
        args: The recipe's arguments.
        accelerator: Of the run.
        resolution: Side of the training images in pixels.
    """

    def __init__(
        self,
        pipeline: StableDiffusionPipeline,
        data: datasets.Dataset,
        args: Arguments,
        accelerator: Accelerator,
        resolution: int,
    ) -> None:
        self.pipeline, self.data, self.args, self.accelerator = pipeline, data, args, accelerator
        self.resolution = resolution
        self.noise_scheduler = training_scheduler(pipeline, args)
        for module in (pipeline.vae, pipeline.text_encoder):
            module.requires_grad_(False).eval().to(accelerator.device)
        self._folder = Path(args.output.output_dir) / "cache"
        self._captions = sorted(set(data["text"]))
        rows = {text: row for row, text in enumerate(self._captions)}
        self._caption_rows = torch.tensor([rows[text] for text in data["text"]])
        self._latents: ArrayCache | None = None
        self._text: ArrayCache | None = None
        self._side = 0

    def enter_stage(self, growth: GrowthScheduler) -> None:
        """Get the caches of the stage's resolution ready."""
        if self._text is None:
            self._text = self._cache("text", len(self._captions), self._encode_text, self.pipeline.text_encoder, 64)
        side = stage_size((self.resolution, self.resolution), growth.resolution, growth.config.resolution_multiple)[0]
        if side == self._side or not self.args.data.cache_latents:
            return
        self._side = side
        flips = 2 if self.args.data.random_flip else 1
        count = flips * len(self.data)
        self._latents = self._cache(f"latents-{side}", count, self._encode_images, self.pipeline.vae, 32)

    def loss(self, denoiser: Any, batch: dict[str, Tensor], growth: GrowthScheduler) -> Tensor:
        """Denoising loss of one batch, () float32.

        Args:
            denoiser: The prepared UNet.
            batch: `index` (N,) row numbers; `pixel_values` (N, 3, H, W) in [-1, 1] where latents are not cached.
            growth: Gives the stage's resolution.
        """
        latents = self._batch_latents(batch, growth)
        assert self._text is not None
        text = self._text[self._caption_rows[batch["index"].cpu()]].to(latents.device)
        noise, mixed = draw_noise(latents, self.args.train)
        steps = self.noise_scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, steps, (len(latents),), device=latents.device)
        noisy = self.noise_scheduler.add_noise(latents, mixed, timesteps)
        target = denoising_target(self.noise_scheduler, latents, noise, timesteps)
        prediction = denoiser(noisy, timesteps, text, return_dict=False)[0]
        return denoising_loss(prediction, target, timesteps, self.noise_scheduler, self.args.train.snr_gamma)

    def _batch_latents(self, batch: dict[str, Tensor], growth: GrowthScheduler) -> Tensor:
        """Draws latents (N, C, h, w) from the VAE's posterior, as the uncached script does at every step."""
        device = self.accelerator.device
        if "pixel_values" in batch:
            pixels = growth.resize(batch["pixel_values"].to(device))
            with torch.no_grad():
                moments = self.pipeline.vae.encode(pixels).latent_dist.parameters
        else:
            assert self._latents is not None
            rows = batch["index"].cpu()
            if self.args.data.random_flip:
                rows = rows + len(self.data) * torch.randint(2, rows.shape)
            moments = self._latents[rows].to(device)
        mean, logvar = moments.chunk(2, dim=1)
        std = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
        return (mean + std * torch.randn_like(mean)) * self.pipeline.vae.config.scaling_factor

    def _cache(self, name: str, count: int, compute: Any, module: torch.nn.Module, batch_size: int) -> ArrayCache:
        args = self.args.data
        data = (args.image_interpolation_mode, self._side, self.data._fingerprint, count)
        mark = text_fingerprint(name, module_fingerprint(module), *data, *self._captions)
        path = self._folder / f"{name}.npy"
        return build_cache(
            path, count, compute, mark, self.accelerator, batch_size=batch_size, title=f"encoding {name}"
        )

    def _encode_text(self, rows: Sequence[int]) -> Tensor:
        """Caption numbers -> (len, tokens, width)."""
        ids = self.pipeline.tokenizer(
            [self._captions[row] for row in rows],
            padding="max_length",
            max_length=self.pipeline.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.pipeline.text_encoder(ids.to(self.accelerator.device), return_dict=False)[0]

    def _encode_images(self, rows: Sequence[int]) -> Tensor:
        """Row numbers -> (len, 2C, h, w) moments of the posterior; rows past the data are mirrored images."""
        images = []
        for row in rows:
            pixels = to_pixels(read_image(self.data, row % len(self.data)), self._side, self.args.data)
            images.append(pixels.flip(-1) if row >= len(self.data) else pixels)
        pixels = torch.stack(images).to(self.accelerator.device)
        return self.pipeline.vae.encode(pixels).latent_dist.parameters


def check_sizes(pipeline: StableDiffusionPipeline, resolution: int) -> None:
    """Refuse a resolution that the VAE cannot divide; a UNet's patch size is 1 and it pads by itself.

    Raises:
        ConfigError: The message names the multiple and the nearest size.
    """
    multiple = pipeline.vae_scale_factor
    if resolution <= 0 or resolution % multiple:
        near = max(multiple, round(resolution / multiple) * multiple)
        raise ConfigError(f"--resolution {resolution} is not a multiple of {multiple} (the VAE's factor): use {near}.")
