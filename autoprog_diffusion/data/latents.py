"""Latents of the training images, computed once per stage resolution or encoded batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autoprog_diffusion.growth.resize import resize_images, stage_size

from .cache import ArrayCache, CacheType, build_cache, module_fingerprint, text_fingerprint
from .codecs import codec_of
from .decode import read_image, undecoded
from .errors import DataError
from .images import ImageSettings, to_pixels
from .placement import keep_on_device, on_device


if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

    from autoprog_diffusion.growth import GrowthScheduler


Batch = dict[str, Tensor]
# Images that are encoded together have about so many pixels: what a VAE keeps of them takes some GB.
PIXELS = 2 * 512**2


@dataclass(eq=False)
class Latents:
    """Latents of training batches at the stage's resolution, drawn anew from the VAE's posterior at every step.

    Attributes:
        vae: A frozen VAE; it is on the device while it encodes, and stays there if nothing is cached.
        data: Column `image`.
        accelerator: Of the run.
        resolution: Side of the training images in pixels.
        folder: Where caches are kept.
        images: How an image becomes a square.
        cached: Encode every image once per stage resolution, before training in it.
        dtype: Of the numbers in the cache.
        side: Of the stage's images in pixels, once a stage is entered.
        multiple: The stage's side is a multiple of this.
    """

    vae: Any
    data: Dataset
    accelerator: Accelerator
    _: KW_ONLY
    resolution: int
    folder: Path
    images: ImageSettings
    cached: bool = True
    dtype: CacheType = "float32"
    side: int = 0
    multiple: int = 1
    _cache: ArrayCache | None = None

    def __post_init__(self) -> None:
        self.vae.requires_grad_(False).eval()
        if not self.cached:
            keep_on_device(self.vae, self.accelerator.device)
        self._files = undecoded(self.data)

    def enter_stage(self, growth: GrowthScheduler) -> None:
        """Get the cache of the stage's resolution ready."""
        before = self.side
        self.multiple = growth.config.resolution_multiple
        self.side, _ = stage_size((self.resolution, self.resolution), growth.resolution, self.multiple)
        if self.side != before and self.cached:
            with on_device([self.vae], self.accelerator.device):
                self._cache = self._build_cache()

    def draw(self, batch: Batch, noise: Callable[[Tensor], Tensor] = torch.randn_like) -> Tensor:
        """(N, C, h, w) latents, centred and scaled as the pipeline's denoiser expects them.

        Args:
            batch: `index` (N,) row numbers; `pixel_values` (N, 3, H, W) in [-1, 1] where latents are not cached.
            noise: Draws standard normal noise like a tensor.
        """
        device = self.accelerator.device
        if "pixel_values" in batch:
            moments = self._moments(resize_images(batch["pixel_values"].to(device), self.side, self.multiple))
        else:
            assert self._cache is not None
            moments = self._cache[self._cached_rows(batch["index"].cpu())].to(device)
        return codec_of(self.vae).draw(self.vae, moments, noise)

    def _build_cache(self) -> ArrayCache:
        """The moments of all images at the stage's resolution, (items, 2C, h, w)."""
        name = f"latents-{self.side}"
        # With random flips all images are followed by their mirror images.
        count = len(self.data) * (1 + self.images.random_flip)
        weights = module_fingerprint(self.vae)
        mark = text_fingerprint(name, weights, self.images.interpolation, self.data._fingerprint, count)
        return build_cache(
            self.folder / f"{name}.npy",
            count,
            self._encode,
            fingerprint=mark,
            accelerator=self.accelerator,
            batch_size=max(1, min(32, PIXELS // self.side**2)),
            title=f"encoding {name}",
            dtype=self.dtype,
        )

    def _cached_rows(self, rows: Tensor) -> Tensor:
        """Rows of the cache for (N,) rows of the data: the image, or its mirror image by chance."""
        if not self.images.random_flip:
            return rows
        return rows + len(self.data) * torch.randint(2, rows.shape)

    def _encode(self, rows: Sequence[int]) -> Tensor:
        """Rows of the cache -> (len, 2C, h, w) moments of the posterior."""
        images = []
        for row in rows:
            mirrored, index = divmod(row, len(self.data))
            pixels = to_pixels(read_image(self._files, index), self.side, self.images)
            images.append(pixels.flip(-1) if mirrored else pixels)
        return self._moments(torch.stack(images))

    def _moments(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 2C, h, w) moments of the posterior, float32: means, then logarithms of variances.

        Raises:
            DataError: The VAE computes in less than float32, and overflows.
        """
        dtype = self.vae.dtype
        with torch.no_grad():
            pixels = pixels.to(device=self.accelerator.device, dtype=dtype)
            moments = codec_of(self.vae).encode(self.vae, pixels)
        if dtype != torch.float32 and not moments.isfinite().all():
            raise DataError(f"the VAE overflows in {dtype}: use --vae_dtype float32.")
        return moments.float()
