"""Heights and widths of all images of a data set, from the heads of their files where those say them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from .cache import ArrayCache, build_cache, text_fingerprint
from .colours import is_turned, to_rgb
from .damaged import MOST_THREADS
from .decode import decoding, open_image, undecoded


if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset

# Files of these formats say in their heads how large their pictures are; others may turn them while they are decoded.
HEADS = frozenset({"JPEG", "PNG", "WEBP", "BMP", "GIF"})


def measure_images(data: Dataset, folder: Path, accelerator: Accelerator) -> ArrayCache:
    """Heights and widths of upright images in pixels, (N, 2), kept in a folder; all processes must call it.

    Args:
        data: Column `image`.
        folder: Where they are kept.
        accelerator: Its processes share the work.

    Raises:
        DataError: An image cannot be read; the message names it.
    """
    return build_cache(
        folder / "sizes.npy",
        len(data),
        partial(_measure, undecoded(data)),
        fingerprint=text_fingerprint("sizes", data._fingerprint, len(data)),
        accelerator=accelerator,
        batch_size=1024,
        title="measuring images",
    )


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width in pixels of an image as `colours.to_rgb` gives it; decoded only where its head is not enough.

    Args:
        image: Opened, and not decoded.
    """
    if image.format not in HEADS:
        image = to_rgb(image)
        return image.height, image.width
    if is_turned(image):
        return image.width, image.height
    return image.height, image.width


def _measure(data: Dataset, rows: Sequence[int]) -> Tensor:
    """Row numbers -> (len, 2) heights and widths."""

    def measure(row: int) -> tuple[int, int]:
        with decoding(data, row):
            return upright_size(open_image(data, row))

    threads = min(MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        sizes = list(pool.map(measure, rows))
    return torch.tensor(sizes)
