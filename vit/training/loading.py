"""From flags to data: load training and validation images, and set some aside for a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprog_diffusion.data.damaged import usable_images
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.identity import data_identity
from autoprog_diffusion.data.labelled import class_names, load_train_and_val
from autoprog_diffusion.data.report import DAMAGED, DataReport
from autoprog_diffusion.data.rows import split_by
from autoprog_diffusion.growth.errors import ConfigError

from .arguments import DataArguments, SharedArguments
from .augment_settings import AugmentSettings
from .data import Decoded, Encoded, decode_all


if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset


@dataclass(frozen=True)
class Data:
    """Images of a run.

    Attributes:
        train: For training.
        val: For validation.
        held_out: Training images that are set aside for a search, or None.
        classes: Names.
        identity: Of all training images, those that are set aside too.
        report: What was found and left out.
    """

    train: Decoded | Encoded
    val: Decoded | Encoded
    held_out: Decoded | None
    classes: tuple[str, ...]
    identity: dict[str, Any]
    report: DataReport | None = None


def load_data(args: SharedArguments, *, size: int, held_out: int = 0, accelerator: Accelerator | None = None) -> Data:
    """Load the data that the arguments name; in memory where it fits.

    Args:
        args: Arguments of any script.
        size: Side of the images in pixels.
        held_out: Number of training images to set aside for a search.
        accelerator: Its processes share the search for damaged images.

    Raises:
        DataError: As `load_train_and_val`, or an image cannot be decoded and `--corrupt refuse`.
    """
    seed = args.train.seed
    report = DataReport()
    train, val = load_rows(args.data, size, seed, report)
    identity = data_identity(train)
    aside = None
    if held_out:
        train, aside = _set_aside(train, held_out, seed)
        report.readings[0].leave_out("set aside for the search", count=held_out)
    crop = args.augment if args.augment.crop == "resized" else None
    rows = _decoded_if_small(train, args, size, accelerator=accelerator, crop=crop)
    val_rows = _decoded_if_small(val, args, size, accelerator=accelerator)
    for reading, data, used in zip(report.readings, (train, val), (rows, val_rows)):
        reading.leave_out(DAMAGED, count=len(data) - len(used))
        reading.used = len(used)
    report.log()
    return Data(
        train=rows,
        val=val_rows,
        held_out=decode_all(aside, size, args.data.corrupt) if aside else None,
        classes=tuple(class_names(train)),
        identity=identity,
        report=report,
    )


def load_rows(data: DataArguments, size: int, seed: int, report: DataReport | None = None) -> tuple[Dataset, Dataset]:
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
        report=report,
    )


def check_sizes(size: int, resolutions: Sequence[int], multiple: int) -> None:
    """Refuse image sides that patches do not divide, or that are larger than the last stage's.

    Args:
        size: Side of the images in the last stage, in pixels.
        resolutions: Sides in the stages, if they are given.
        multiple: Image sides must be multiples of this.

    Raises:
        ConfigError: The message names the flag, the size and the nearest that is allowed.
    """
    for index, side in enumerate((size, *resolutions)):
        if side % multiple or not 0 < side <= size:
            near = max(multiple, min(side, size) // multiple * multiple)
            flag = "resolutions" if index else "img_size"
            raise ConfigError(
                f"--{flag} {side} is not a multiple of the model's patch ({multiple} pixels), or larger than "
                f"--img_size {size}: use for example {near}."
            )


def _decoded_if_small(
    data: Dataset,
    args: SharedArguments,
    size: int,
    *,
    accelerator: Accelerator | None,
    crop: AugmentSettings | None = None,
) -> Decoded | Encoded:
    if len(data) * 3 * size**2 <= args.data.memory * 2**20:
        return decode_all(data, size, args.data.corrupt)
    data, _ = usable_images(data, args.data.corrupt, accelerator)
    return Encoded(data, size=size, crop=crop, seed=args.train.seed)


def _set_aside(data: Dataset, count: int, seed: int) -> tuple[Dataset, Dataset]:
    """The data without `count` random rows, and those."""
    if count > len(data) // 2:
        raise DataError(
            f"--search_samples {count} is more than half of the {len(data)} training images: use fewer, or "
            "--search fixed."
        )
    aside = np.zeros(len(data), dtype=bool)
    aside[np.random.default_rng(seed).permutation(len(data))[:count]] = True
    return split_by(data, aside)
