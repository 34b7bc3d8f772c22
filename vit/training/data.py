"""Batches of labelled images: small data is decoded once, large data by the loader's workers at the stage's size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from autoprog_diffusion.data.damaged import Corrupt, sound_rows
from autoprog_diffusion.data.decode import decoding, open_image, quiet, reason
from autoprog_diffusion.data.images import random_square, read_square, seeded, shrink
from autoprog_diffusion.training.ends import keeping_workers_alive

from .augment_settings import AugmentSettings


if TYPE_CHECKING:
    from datasets import Dataset as Rows


Batch = tuple[Tensor, Tensor]


class Decoded(Dataset):
    """Images in memory; a batch is a slice of one array.

    Args:
        images: (N, 3, S, S), uint8.
        labels: (N,), int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels
        self.size = images.shape[-1]
        self.epoch = 0
        self._full_size = images

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: list[int]) -> Batch:
        return self.images[rows], self.labels[rows]

    def resize(self, size: int) -> None:
        """Give images of another side from now on: averaged down once, not per batch."""
        self.size = size
        self.images = self._full_size
        if size != self._full_size.shape[-1]:
            self.images = torch.cat([shrink(part, size) for part in self._full_size.split(1024)])


@dataclass(eq=False)
class Encoded(Dataset):
    """Images that are decoded, cropped and resized when they are asked for, in any worker.

    Attributes:
        data: As `load_train_and_val` gives it.
        size: Side of the images in pixels.
        crop: Area and aspect ratio of random crops; None cuts the centre.
        seed: Of the crops, which depend on it, the epoch and the row alone.
        epoch: Which epoch.
    """

    data: Rows
    _: KW_ONLY
    size: int
    crop: AugmentSettings | None
    seed: int
    epoch: int = 0

    def __post_init__(self) -> None:
        self.labels = _labels(self.data)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: list[int]) -> Batch:
        images = [self._cut(row) for row in rows]
        return torch.stack(images), self.labels[rows]

    def resize(self, size: int) -> None:
        """Give images of another side from now on."""
        self.size = size

    def _cut(self, row: int) -> Tensor:
        crop = self.crop
        with decoding(self.data, row):
            image = open_image(self.data, row)
            if crop is None:
                return read_square(image, self.size)
            generator = seeded(self.seed, self.epoch, row)
            return random_square(
                image,
                size=self.size,
                scale=crop.scale,
                ratio=crop.ratio,
                generator=generator,
            )


def epoch_batches(
    count: int, *, batch: int, seed: int, epoch: int, start: int = 0, rank: int = 0, world: int = 1
) -> list[list[int]]:
    """Rows of one rank's batches: an epoch's order depends on seed and epoch alone, so a resumed run sees the same.

    Accelerate's sharded loader is not used: where a stage begins, the loader starts again in the middle of an epoch
    with images of another size, which leaves the old one open in Accelerate's books.

    Args:
        count: Number of images.
        batch: Images per process and batch; the incomplete last batch of all processes is dropped.
        seed: Of the order.
        epoch: Which epoch.
        start: Batches of the epoch that are done.
        rank: This process.
        world: Number of processes.
    """
    order = torch.randperm(count, generator=seeded(seed, epoch))
    complete = count // (batch * world) * batch * world
    steps = order[:complete].view(-1, world, batch)
    return steps[start:, rank].tolist()


def make_loader(rows: Decoded | Encoded, batches: Iterable[list[int]], workers: int) -> DataLoader:
    """Batches (images (N, 3, S, S) uint8, labels (N,)) of the rows that `batches` lists."""
    return DataLoader(
        rows,
        sampler=batches,
        batch_size=None,  # the sampler's items are batches already
        num_workers=workers if isinstance(rows, Encoded) else 0,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: starting an epoch must not advance the one that draws the augmentation.
        generator=torch.Generator(),
        worker_init_fn=keeping_workers_alive(),
    )


def decode_all(data: Rows, size: int, corrupt: Corrupt) -> Decoded:
    """Decode all images to squares, leaving out or refusing those that cannot be.

    Args:
        data: As `load_train_and_val` gives it.
        size: Side of the squares in pixels.
        corrupt: `skip` leaves out what cannot be decoded and names it; `refuse` raises.

    Raises:
        DataError: Some cannot be decoded and `corrupt` is `refuse`, or none can.
    """
    images = torch.empty(len(data), 3, size, size, dtype=torch.uint8)
    labels = _labels(data)
    damaged: dict[int, str] = {}
    for row in tqdm(range(len(data)), desc="decoding", leave=False, delay=5):
        try:
            with quiet():
                images[row] = read_square(open_image(data, row), size)
        except Exception as error:  # as in `decoding`
            damaged[row] = reason(error)
    rows = sound_rows(data, damaged, corrupt)
    if damaged:
        images = images[rows]
        labels = labels[rows]
    return Decoded(images, labels)


def _labels(data: Rows) -> Tensor:
    return torch.as_tensor(data["label"][:])
