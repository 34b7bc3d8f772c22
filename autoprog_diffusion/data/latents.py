"""Cached latents: what a VAE makes of every image, once per stage resolution."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autoprog_diffusion.growth.resize import resize_images, stage_size
from autoprog_diffusion.training.arguments import Arguments

from .cache import ArrayCache, build_cache, module_fingerprint, text_fingerprint
from .images import read_image, to_pixels


if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator

    from autoprog_diffusion.growth import GrowthScheduler


class Latents:
    """Latents of training batches at the stage's resolution, drawn anew from the VAE's posterior at every step.

    Args:
        vae: A frozen `AutoencoderKL`; it is moved to the device.
        data: Column `image`.
        args: The recipe's arguments.
        accelerator: Of the run.
        resolution: Side of the training images in pixels.
    """

    def __init__(
        self, vae: Any, data: datasets.Dataset, args: Arguments, accelerator: Accelerator, resolution: int
    ) -> None:
        vae.requires_grad_(False).eval().to(accelerator.device)
        self.vae, self.data, self.args, self.accelerator = vae, data, args.data, accelerator
        self._resolution, self._folder = resolution, Path(args.output.output_dir) / "cache"
        self._cache: ArrayCache | None = None
        self.side = 0  # of the stage's images, in pixels
        self._multiple = 1  # that the side must be of

    def enter_stage(self, growth: GrowthScheduler) -> None:
        """Get the cache of the stage's resolution ready."""
        size, before = (self._resolution, self._resolution), self.side
        self._multiple = growth.config.resolution_multiple
        self.side = stage_size(size, growth.resolution, self._multiple)[0]
        if self.side == before or not self.args.cache_latents:
            return
        count = (2 if self.args.random_flip else 1) * len(self.data)
        name, filter_ = f"latents-{self.side}", self.args.image_interpolation_mode
        mark = text_fingerprint(name, module_fingerprint(self.vae), filter_, self.data._fingerprint, count)
        self._cache = build_cache(
            self._folder / f"{name}.npy", count, self._encode, mark, self.accelerator, batch_size=32,
            title=f"encoding {name}",
        )  # fmt: skip

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
            rows = batch["index"].cpu()
            if self.args.random_flip:
                rows = rows + len(self.data) * torch.randint(2, rows.shape)
            moments = self._cache[rows].to(device)
        mean, logvar = moments.chunk(2, dim=1)
        std = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return (mean + std * torch.randn_like(mean) - shift) * self.vae.config.scaling_factor

    def _encode(self, rows: Sequence[int]) -> Tensor:
        """Row numbers -> (len, 2C, h, w) moments of the posterior; rows past the data are mirrored images."""
        images = []
        for row in rows:
            pixels = to_pixels(read_image(self.data, row % len(self.data)), self.side, self.args)
            images.append(pixels.flip(-1) if row >= len(self.data) else pixels)
        return self.vae.encode(torch.stack(images).to(self.accelerator.device)).latent_dist.parameters
