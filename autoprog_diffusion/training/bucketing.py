"""`--buckets`: from the flags to sizes of the training and the held-out images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from autoprog_diffusion.data.bucket_plan import BucketPlan, place_images
from autoprog_diffusion.data.bucket_settings import BucketSettings, plan_buckets, table
from autoprog_diffusion.data.image_sizes import measure_images
from autoprog_diffusion.data.report import DataReport
from autoprog_diffusion.growth.errors import ConfigError

from .hold_out import cache_folder
from .recipe_arguments import Arguments, DataArguments


if TYPE_CHECKING:
    from accelerate import Accelerator
    from datasets import Dataset


def given_resolution(data: DataArguments) -> int | None:
    """The resolution that the flags say: the largest one of buckets; None without a flag.

    Raises:
        ConfigError: `--resolution` is another one than the largest of `--bucket_resolutions`.
    """
    if not data.buckets or not data.bucket_resolutions:
        return data.resolution
    largest = max(data.bucket_resolutions)
    if data.resolution not in (None, largest):
        raise ConfigError(
            f"--resolution {data.resolution} is not the largest of --bucket_resolutions {data.bucket_resolutions}: "
            f"remove it, or use {largest}."
        )
    return largest


def check_resolution(resolution: int, multiple: int) -> None:
    """Refuse a side of the images that the VAE or the denoiser cannot divide, or the pipeline does not draw.

    Raises:
        ConfigError: The message names the multiple and the nearest size.
    """
    if resolution <= 0 or resolution % multiple:
        near = max(multiple, round(resolution / multiple) * multiple)
        raise ConfigError(
            f"--resolution {resolution} is not a multiple of {multiple} (of VAE, denoiser and pipeline): use {near}."
        )


def bucket_settings(data: DataArguments, resolution: int) -> BucketSettings:
    """Settings of the flags.

    Args:
        data: The flags.
        resolution: Of the run, in pixels.
    """
    return BucketSettings(
        resolutions=data.bucket_resolutions or (resolution,),
        step=data.bucket_step,
        max_aspect=data.max_aspect,
        merge=data.merge_buckets,
        incomplete=data.incomplete_batches,
    )


def training_plan(
    data: Dataset,
    args: Arguments,
    accelerator: Accelerator,
    *,
    resolution: int,
    multiple: int,
    report: DataReport,
) -> BucketPlan | None:
    """Sizes of the training images; None without `--buckets`.

    Args:
        data: Column `image`.
        args: Of the recipe.
        accelerator: Of the run.
        resolution: Of the run, in pixels.
        multiple: What the pipeline needs sides to be multiples of.
        report: Gets the sizes, and what a user may not expect.

    Raises:
        ConfigError: A flag's value is not allowed.
        DataError: A bucket holds fewer images than a batch, or an image cannot be read.
    """
    if not args.data.buckets:
        return None
    plan = plan_buckets(
        _sizes(data, cache_folder(args), accelerator),
        bucket_settings(args.data, resolution),
        multiple,
        args.train.train_batch_size,
        report.readings[-1].notes,
    )
    report.buckets = table(plan)
    return plan


def held_out_plan(
    data: Dataset, args: Arguments, accelerator: Accelerator, *, resolution: int, multiple: int
) -> BucketPlan | None:
    """Sizes of held-out images, whatever the number of images in a bucket; arguments as `training_plan` takes them."""
    if not args.data.buckets:
        return None
    steps = bucket_settings(args.data, resolution).steps(multiple)
    sizes = _sizes(data, cache_folder(args) / "held_out", accelerator)
    return place_images(sizes, steps, args.data.max_aspect).plan


def _sizes(data: Dataset, folder: Path, accelerator: Accelerator) -> Tensor:
    """(N, 2) heights and widths in pixels."""
    return measure_images(data, folder, accelerator)[torch.arange(len(data))]
