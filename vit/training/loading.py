"""From flags to data: load training and validation images, and set some aside for a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autoprog_diffusion.data.images import DataError
from autoprog_diffusion.data.labelled import class_names, load_train_and_val
from autoprog_diffusion.growth.errors import ConfigError

from .arguments import Arguments, DataArguments
from .augment_settings import AugmentSettings
from .data import Decoded, Encoded, decode_all


if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Data:
    """Images of a run.

    Attributes:
        train: For training.
        val: For validation.
        held_out: Training images that are set aside for a search, or None.
        classes: Names.
    """

    train: Decoded | Encoded
    val: Decoded | Encoded
    held_out: Decoded | None
    classes: tuple[str, ...]


def load_data(args: Arguments, *, multiple: int, hold_out: bool) -> Data:
    """Load the data that the arguments name; in memory where it fits.

    Args:
        args: All arguments.
        multiple: Image sides must be multiples of this.
        hold_out: Set `--search_samples` training images aside.

    Raises:
        ConfigError: The model's patch does not divide a size.
        DataError: As `load_train_and_val`, or an image cannot be decoded and `--corrupt refuse`.
    """
    size = args.model.img_size
    seed = args.train.seed
    check_sizes(args, multiple)
    train, val = load_rows(args.data, size, seed)
    held_out = None
    if hold_out:
        train, aside = _set_aside(train, args.growth.search_samples, seed)
        held_out = decode_all(aside, size, args.data.corrupt)
    crop = args.augment if args.augment.crop == "resized" else None
    return Data(
        train=_decoded_if_small(train, args, crop),
        val=_decoded_if_small(val, args, None),
        held_out=held_out,
        classes=tuple(class_names(train)),
    )


def load_rows(data: DataArguments, size: int, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training and validation set of the arguments, as `load_train_and_val` gives them."""
    return load_train_and_val(
        train_data=data.train_data,
        val_data=data.val_data,
        val_fraction=data.val_fraction,
        image_column=data.image_column,
        label_column=data.label_column,
        max_train_samples=data.max_train_samples,
        size=size,
        seed=seed,
    )


def check_sizes(args: Arguments, multiple: int) -> None:
    """Refuse image sides that patches do not divide, or that are larger than the last stage's.

    Raises:
        ConfigError: The message names the flag, the size and the nearest that is allowed.
    """
    largest = args.model.img_size
    named = [("img_size", largest), *(("resolutions", size) for size in args.growth.resolutions or ())]
    for flag, size in named:
        if size % multiple or not 0 < size <= largest:
            near = max(multiple, min(size, largest) // multiple * multiple)
            raise ConfigError(
                f"--{flag} {size} is not a multiple of the model's patch ({multiple} pixels), or larger than "
                f"--img_size {largest}: use for example {near}."
            )


def _decoded_if_small(data: datasets.Dataset, args: Arguments, crop: AugmentSettings | None) -> Decoded | Encoded:
    size = args.model.img_size
    if len(data) * 3 * size**2 <= args.data.memory * 2**20:
        return decode_all(data, size, args.data.corrupt)
    return Encoded(data, size=size, crop=crop, corrupt=args.data.corrupt, seed=args.train.seed)


def _set_aside(data: datasets.Dataset, count: int, seed: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The data without `count` random rows, and those."""
    if count > len(data) // 2:
        raise DataError(
            f"--search_samples {count} is more than half of the {len(data)} training images: use fewer, or "
            "--search fixed."
        )
    order = np.random.default_rng(seed).permutation(len(data))
    return data.select(np.sort(order[count:])), data.select(np.sort(order[:count]))
