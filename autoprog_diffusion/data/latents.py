"""Latents of the training images, computed once per stage resolution or encoded batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autoprog_diffusion.growth.resize import resize_images, stage_size

from .cache import ArrayCache, build_cache, module_fingerprint, text_fingerprint
from .images import ImageSettings, read_image, to_pixels


if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator

    from autoprog_diffusion.growth import GrowthScheduler


class Latents:
    """Latents of training batches at the stage's resolution, drawn anew from the VAE's posterior at every step.

    Args:
        vae: A frozen `AutoencoderKL`; it is moved to the device.
        data: Column `image`.
        accelerator: Of the run.
        resolution: Side of the training images in pixels.
        folder: Where caches are kept.
        images: How an image becomes a square.
        cached: Encode every image once per stage resolution, before training in it.

    Attributes:
        side: Of the stage's images in pixels, once a stage is entered.
    """

    def __init__(
        self,
        vae: Any,
        data: datasets.Dataset,
        accelerator: Accelerator,
        *,
        resolution: int,
        folder: Path,
        images: ImageSettings,
        cached: bool = True,
    ) -> None:
        vae.requires_grad_(False).eval().to(accelerator.device)
        self.vae = vae
        self.data = data
        self.accelerator = accelerator
        self.resolution = resolution
        self.folder = folder
        self.cached = cached
        self.side = 0
        self._images = images
        self._multiple = 1  # the stage's side is a multiple of this
        self._cache: ArrayCache | None = None

    def enter_stage(self, growth: GrowthScheduler) -> None:
        """Get the cache of the stage's resolution ready."""
        before = self.side
        self._multiple = growth.config.resolution_multiple
        self.side = stage_size((self.resolution, self.resolution), growth.resolution, self._multiple)[0]
        if self.side != before and self.cached:
            self._cache = self._build_cache()

    def draw(self, batch: dict[str, Tensor]) -> Tensor:
        """(N, C, h, w) latents, centred and scaled as the pipeline's denoiser expects them.

        Args:
            batch: `index` (N,) row numbers; `pixel_values` (N, 3, H, W) in [-1, 1] where latents are not cached.
        """
        device = self.accelerator.device
        if "pixel_values" in batch:
            pixels = resize_images(batch["pixel_values"].to(device), self.side, self._multiple)
            with torch.no_grad():
                moments = self.vae.encode(pixels).latent_dist.parameters
        else:
            assert self._cache is not None
            moments = self._cache[self._cached_rows(batch["index"].cpu())].to(device)
        mean, logvar = moments.chunk(2, dim=1)
        # Bounds of Diffusers' DiagonalGaussianDistribution.
        std = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
        sample = mean + std * torch.randn_like(mean)
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return (sample - shift) * self.vae.config.scaling_factor

    def _build_cache(self) -> ArrayCache:
        name = f"latents-{self.side}"
        count = len(self.data)
        if self._images.random_flip:
            count *= 2  # every image is followed, after all others, by its mirror image
        interpolation = self._images.interpolation
        mark = text_fingerprint(name, module_fingerprint(self.vae), interpolation, self.data._fingerprint, count)
        return build_cache(
            self.folder / f"{name}.npy",
            count,
            self._encode,
            fingerprint=mark,
            accelerator=self.accelerator,
            batch_size=32,
            title=f"encoding {name}",
        )

    def _cached_rows(self, rows: Tensor) -> Tensor:
        """Rows of the cache for (N,) rows of the data: the image, or its mirror image by chance."""
        if not self._images.random_flip:
            return rows
        return rows + len(self.data) * torch.randint(2, rows.shape)

    def _encode(self, rows: Sequence[int]) -> Tensor:
        """Rows of the cache -> (len, 2C, h, w) moments of the posterior."""
        images = []
        for row in rows:
            image = read_image(self.data, row % len(self.data))
            pixels = to_pixels(image, self.side, self._images)
            if row >= len(self.data):
                pixels = pixels.flip(-1)
            images.append(pixels)
        return self.vae.encode(torch.stack(images).to(self.accelerator.device)).latent_dist.parameters
