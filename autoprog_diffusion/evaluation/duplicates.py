"""Near-duplicate images: copies, other sizes and other compressions of one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autoprog_diffusion.data.cache import build_cache, text_fingerprint
from autoprog_diffusion.data.colours import to_rgb
from autoprog_diffusion.data.decode import decoding, open_image, undecoded


if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

SIDE = 8  # pixels of a thumbnail
# Of 255: the largest difference in any pixel of the thumbnails of near-duplicates. Copies of emoji, half to twice as
# large and compressed, differ by 14 (median) to 24 (9 of 10), the nearest other emoji by 96 (median).
NEAR = 24.0
MOST_IMAGES = 50_000  # that are looked at: all of them are decoded once
_AT_A_TIME = 32


def thumbnails(data: Dataset, folder: Path, accelerator: Accelerator) -> Tensor:
    """(N, 192) float32 in [0, 255]: every image at 8 x 8 pixels; computed once, by all processes together.

    Args:
        data: Column `image`.
        folder: Where they are kept.
        accelerator: Of the run.
    """
    files = undecoded(data)

    def shrink(rows: Sequence[int]) -> Tensor:
        return torch.stack([_thumbnail(files, row) for row in rows])

    cache = build_cache(
        folder / "thumbnails.npy",
        len(data),
        shrink,
        fingerprint=text_fingerprint("thumbnails", SIDE, data._fingerprint, len(data)),
        accelerator=accelerator,
        batch_size=64,
        title="looking for near-duplicates",
    )
    return torch.from_numpy(np.array(cache.array))


def near_duplicates(some: Tensor, others: Tensor) -> Tensor:
    """Whether each of (N, D) thumbnails has a near-duplicate among (M, D) other ones, (N,) bool."""
    found = []
    for part in some.split(_AT_A_TIME):
        distances = torch.cdist(part, others, p=float("inf"))
        found.append((distances <= NEAR).any(dim=1))
    return torch.cat(found)


def _thumbnail(data: Dataset, row: int) -> Tensor:
    """One image at 8 x 8 pixels, by area averaging, (192,)."""
    with decoding(data, row):
        image = open_image(data, row)
        # An eighth of a JPEG's size is decoded in a fraction of the time.
        image.draft("RGB", (8 * SIDE, 8 * SIDE))
        small = to_rgb(image).resize((SIDE, SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.array(small)).float().flatten()
