"""Batches of labelled images: small data is decoded once, large data by the loader's workers at the stage's size."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

from autoprog_diffusion.growth.errors import ConfigError

from .arguments import Arguments, AugmentArguments
from .pixels import UNREADABLE, cut_window, read_pixels, shrink
from .sources import DataError, Source, load_sources


logger = logging.getLogger(__name__)
Batch = tuple[Tensor, Tensor]


class Decoded(Dataset):
    """Images in memory; a batch is a slice of one array.

    Args:
        images: (N, 3, S, S), uint8.
        labels: (N,), int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.size, self.epoch = images.shape[-1], 0
        self._whole = images

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = torch.as_tensor(indices)
        return self.images[rows], self.labels[rows]

    def resize(self, size: int) -> None:
        """Give images of another side from now on: averaged down once, not per batch."""
        self.size, whole = size, self._whole
        parts = [whole] if size == whole.shape[-1] else [shrink(part, size) for part in whole.split(1024)]
        self.images = torch.cat(parts)


class Encoded(Dataset):
    """Images that are decoded, cropped and resized when they are asked for, in any worker.

    Args:
        source: What to read.
        size: Side of the images in pixels.
        crop: Random resized crops; None cuts the centre.
        corrupt: `skip` takes the next image instead of one that cannot be decoded, and names it; `refuse` raises.
        seed: Of the crops, which depend on it, the epoch and the row alone.
    """

    def __init__(self, source: Source, size: int, crop: AugmentArguments | None, corrupt: str, seed: int) -> None:
        self.source, self.size, self.epoch = source, size, 0
        self._crop, self._corrupt, self._seed = crop, corrupt, seed
        self.labels = torch.as_tensor(source.labels)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        items = [self._item(index) for index in indices]
        return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])

    def resize(self, size: int) -> None:
        """Give images of another side from now on."""
        self.size = size

    def _item(self, index: int) -> tuple[Tensor, int]:
        for row in range(index, index + len(self)):
            row %= len(self)
            try:
                return self._cut(row), self.source.labels[row]
            except UNREADABLE as error:
                if self._corrupt == "refuse":
                    raise _unreadable([self.source.names[row]]) from error
                logger.warning("%s cannot be decoded: the next image is taken instead.", self.source.names[row])
        raise _unreadable(list(self.source.names))

    def _cut(self, row: int) -> Tensor:
        image = self.source.read(row)
        if self._crop is None:
            return read_pixels(image, self.size)
        generator = torch.Generator().manual_seed(hash((self._seed, self.epoch, row)) % 2**63)
        return cut_window(image, self.size, self._crop, generator)


@dataclass(frozen=True)
class Data:
    """What a run trains and validates on.

    Attributes:
        train: Images that train.
        val: Images that are validated on.
        held_out: Training images that are set aside for a search, or None.
        classes: Names.
    """

    train: Decoded | Encoded
    val: Decoded | Encoded
    held_out: Decoded | None
    classes: tuple[str, ...]


def load_data(args: Arguments, *, multiple: int, hold_out: bool) -> Data:
    """Load what the arguments name; in memory where it fits.

    Args:
        args: All arguments.
        multiple: What image sides must be multiples of.
        hold_out: Set `--search_samples` training images aside.

    Raises:
        ConfigError: The model's patch does not divide a size.
        DataError: As `load_sources`, or an image cannot be decoded and `--corrupt refuse`.
    """
    size, seed = args.model.img_size, args.train.seed
    check_sizes(args, multiple)
    train, val = load_sources(args.data, size, seed)
    held = None
    if hold_out:
        train, held = _set_aside(train, args.growth.search_samples, seed)
    crop = args.augment if args.augment.crop == "resized" else None
    return Data(
        train=_rows(train, size, args, crop),
        val=_rows(val, size, args, None),
        held_out=decode_all(held, size, args.data.corrupt) if held else None,
        classes=tuple(train.classes),
    )


def check_sizes(args: Arguments, multiple: int) -> None:
    """Refuse image sides that patches do not divide, or that are larger than the last stage's.

    Raises:
        ConfigError: The message names the flag, the size and the nearest that is allowed.
    """
    for flag, sizes in (("img_size", (args.model.img_size,)), ("resolutions", args.growth.resolutions or ())):
        for size in sizes:
            if size % multiple or not 0 < size <= args.model.img_size:
                near = max(multiple, min(size, args.model.img_size) // multiple * multiple)
                raise ConfigError(
                    f"--{flag} {size} is not a multiple of the model's patch ({multiple} pixels), or larger than "
                    f"--img_size {args.model.img_size}: use for example {near}."
                )


class EpochBatches(Sampler):
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

    def __init__(self, count: int, batch: int, seed: int, epoch: int, start: int, rank: int, world: int) -> None:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(hash((seed, epoch)) % 2**63))
        whole = order[: count // (batch * world) * batch * world].view(-1, world, batch)
        self._rows: list[list[int]] = whole[start:, rank].tolist()

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._rows)


def make_loader(rows: Decoded | Encoded, batches: Iterable[list[int]], workers: int) -> DataLoader:
    """Batches (images (N, 3, S, S) uint8, labels (N,)) of the rows that `batches` lists."""
    return DataLoader(
        rows,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=_as_it_is,
        num_workers=workers if isinstance(rows, Encoded) else 0,
        pin_memory=torch.cuda.is_available(),
        # Its own generator: starting an epoch must not advance the one that draws the augmentation.
        generator=torch.Generator(),
    )


def decode_all(source: Source, size: int, corrupt: str) -> Decoded:
    """Decode all images of a source to squares, leaving out or refusing those that cannot be.

    Raises:
        DataError: Some cannot be decoded and `corrupt` is `refuse`, or none can.
    """
    images = torch.empty(len(source), 3, size, size, dtype=torch.uint8)
    bad: list[int] = []
    for row in tqdm(range(len(source)), desc="decoding", leave=False, delay=5):
        try:
            images[row] = read_pixels(source.read(row), size)
        except UNREADABLE:
            bad.append(row)
    labels = torch.as_tensor(source.labels)
    if bad:
        names = [source.names[row] for row in bad]
        if corrupt == "refuse" or len(bad) == len(source):
            raise _unreadable(names)
        logger.warning("%d of %d images cannot be decoded and are left out: %s", len(bad), len(source), _some(names))
        good = torch.ones(len(source), dtype=torch.bool)
        good[bad] = False
        images, labels = images[good], labels[good]
    return Decoded(images, labels)


def _rows(source: Source, size: int, args: Arguments, crop: AugmentArguments | None) -> Decoded | Encoded:
    if len(source) * 3 * size**2 <= args.data.memory * 2**20:
        return decode_all(source, size, args.data.corrupt)
    return Encoded(source, size, crop, args.data.corrupt, args.train.seed)


def _set_aside(source: Source, count: int, seed: int) -> tuple[Source, Source]:
    if count > len(source) // 2:
        raise DataError(
            f"--search_samples {count} is more than half of the {len(source)} training images: use fewer, or "
            "--search fixed."
        )
    order = np.random.default_rng(seed).permutation(len(source)).tolist()
    return source.select(sorted(order[count:])), source.select(sorted(order[:count]))


def _as_it_is(batch: Any) -> Any:
    return batch


def _unreadable(names: list[str]) -> DataError:
    return DataError(
        f"{len(names)} images cannot be decoded: {_some(names)}. Repair or delete them, or use --corrupt skip."
    )


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
