"""Latents of the training images, computed once per stage resolution or encoded batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from autoprog_diffusion.growth.resize import stage_size

from .bucket_plan import BucketPlan, one_size
from .cache import ArrayCache, CacheType, build_cache, module_fingerprint, text_fingerprint
from .codecs import codec_of
from .decode import read_image, undecoded
from .errors import DataError
from .frames import read_frames
from .images import ImageSettings, cut_window, fit_images
from .memory_format import in_channels_last
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
        resolution: Side of the training images in pixels, or of the square that has their area.
        folder: Where caches are kept.
        images: How an image becomes a square or a bucket's size.
        plan: Sizes of the images; None for squares.
        cached: Encode every image once per stage resolution, before training in it.
        frames: Of every image, from its first one on: above 1 for short videos, which are always cached.
        dtype: Of the numbers in the cache.
        side: Of the stage's images in pixels, or of the square that has their area, once a stage is entered.
        sizes: Heights and widths in pixels of the stage's images, by bucket.
        multiple: The sides of the stage's images are multiples of this.
    """

    vae: Any
    data: Dataset
    accelerator: Accelerator
    _: KW_ONLY
    resolution: int
    folder: Path
    images: ImageSettings
    plan: BucketPlan | None = None
    cached: bool = True
    frames: int = 1
    dtype: CacheType = "float32"
    side: int = 0
    sizes: tuple[tuple[int, int], ...] = ()
    multiple: int = 1
    _caches: dict[int, ArrayCache] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.vae.requires_grad_(False).eval()
        if not self.cached:
            keep_on_device(self.vae, self.accelerator.device)
        self._files = undecoded(self.data)
        self._plan = self.plan or one_size(len(self.data), self.resolution)
        self._counts = torch.tensor(self._plan.counts())
        # Where every item is among those of its bucket.
        self._positions = torch.zeros_like(self._plan.places)
        for place in range(len(self._plan.buckets)):
            own = self._plan.items_of(place)
            self._positions[own] = torch.arange(len(own))

    def enter_stage(self, growth: GrowthScheduler) -> None:
        """Get the caches of the stage's resolution ready."""
        before = self.side
        self.multiple = growth.config.resolution_multiple
        self.side, _ = stage_size((self.resolution, self.resolution), growth.resolution, self.multiple)
        scale = self.side / self.resolution
        self.sizes = tuple(bucket.at(scale, self.multiple) for bucket in self._plan.buckets)
        if self.side != before and self.cached:
            with on_device([self.vae], self.accelerator.device):
                self._build_caches()

    def draw(self, batch: Batch, noise: Callable[[Tensor], Tensor] = torch.randn_like) -> Tensor:
        """(N, C, h, w) latents, centred and scaled as the pipeline's denoiser expects them.

        Args:
            batch: `index` (N,) row numbers, and with a plan `item` (N,) items of one of its buckets; `pixel_values`
                (N, 3, H, W) in [-1, 1] where latents are not cached.
            noise: Draws standard normal noise like a tensor.
        """
        device = self.accelerator.device
        if "pixel_values" in batch:
            height, width = self.size_of(batch)
            moments = self._moments(fit_images(batch["pixel_values"].to(device), height, width))
        else:
            items = self._items(batch)
            cache = self._caches[self.place_of(batch)]
            moments = cache[self._cached_rows(items)].to(device)
        return codec_of(self.vae).draw(self.vae, moments, noise)

    def place_of(self, batch: Batch) -> int:
        """The bucket of a batch."""
        if self.plan is None:
            return 0
        return int(self._plan.places[self._items(batch)[0]])

    def size_of(self, batch: Batch) -> tuple[int, int]:
        """Height and width in pixels of the images of a batch, in the stage."""
        return self.sizes[self.place_of(batch)]

    def side_of(self, batch: Batch) -> int:
        """Side in pixels of the square whose area a batch has, in the stage."""
        bucket = self._plan.buckets[self.place_of(batch)]
        return round(bucket.resolution * self.side / self.resolution)

    def _items(self, batch: Batch) -> Tensor:
        """(N,) items of the plan; without one they are the rows of the data."""
        return batch.get("item", batch["index"]).cpu()

    def _build_caches(self) -> None:
        """The moments of all images at the stage's resolution, (items, 2C, h, w) in every bucket."""
        self._caches = {}
        weights = module_fingerprint(self.vae)
        for place, count in enumerate(self._plan.counts()):
            if count:
                self._caches[place] = self._build_cache(place, weights)

    def _build_cache(self, place: int, weights: str) -> ArrayCache:
        """The moments of the images of a bucket."""
        items = self._plan.items_of(place)
        rows = self._plan.rows[items]
        height, width = self.sizes[place]
        name = f"latents-{self.side}"
        members: tuple[object, ...] = ()
        if self.plan is not None:
            bucket = self._plan.buckets[place]
            name = f"latents-{bucket.name}-at-{width}x{height}"
            members = tuple(rows.tolist())
        if self.frames > 1:
            name = f"{name}-of-{self.frames}-frames"
        # With random flips all images are followed by their mirror images.
        count = len(items) * (1 + self.images.random_flip)
        mark = text_fingerprint(name, weights, self.images.interpolation, self.data._fingerprint, count, *members)
        return build_cache(
            self.folder / f"{name}.npy",
            count,
            partial(self._encode, rows, height, width),
            fingerprint=mark,
            accelerator=self.accelerator,
            batch_size=max(1, min(32, PIXELS // (height * width * self.frames))),
            title=f"encoding {name}",
            dtype=self.dtype,
            turn=place,
        )

    def _cached_rows(self, items: Tensor) -> Tensor:
        """Rows of their bucket's cache for (N,) items: the image, or its mirror image by chance."""
        rows = self._positions[items]
        if not self.images.random_flip:
            return rows
        counts = self._counts[self._plan.places[items]]
        return rows + counts * torch.randint(2, rows.shape)

    def _encode(self, rows: Tensor, height: int, width: int, wanted: Sequence[int]) -> Tensor:
        """Rows of a bucket's cache -> (len, 2C, h, w) moments of the posterior.

        Args:
            rows: (n,) rows of the data of the bucket's images.
            height: Of the bucket in the stage, in pixels.
            width: Of the bucket in the stage, in pixels.
            wanted: Rows of the cache.
        """
        images = []
        for row in wanted:
            mirrored, position = divmod(row, len(rows))
            pixels = self._pixels(int(rows[position]), height, width)
            images.append(pixels.flip(-1) if mirrored else pixels)
        return self._moments(torch.stack(images))

    def _pixels(self, row: int, height: int, width: int) -> Tensor:
        """The centre of an image, (3, H, W) in [-1, 1]; of a video's frames, (3, F, H, W)."""
        if self.frames == 1:
            return cut_window(read_image(self._files, row), height, width, self.images).pixels
        frames = read_frames(self._files, row, self.frames)
        return torch.stack([cut_window(frame, height, width, self.images).pixels for frame in frames], dim=1)

    def _moments(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 2C, h, w) moments of the posterior, float32: means, then logarithms of variances.

        Raises:
            DataError: The VAE computes in less than float32, and overflows.
        """
        dtype = self.vae.dtype
        with torch.no_grad(), in_channels_last(self.vae) as memory_format:
            pixels = pixels.to(device=self.accelerator.device, dtype=dtype)
            if pixels.dim() == 4:
                pixels = pixels.contiguous(memory_format=memory_format)
            moments = codec_of(self.vae).encode(self.vae, pixels)
        if dtype != torch.float32 and not moments.isfinite().all():
            raise DataError(f"the VAE overflows in {dtype}: use --vae_dtype float32.")
        # As a cache gives them: noise is drawn in the order of the memory.
        return moments.float().contiguous()
