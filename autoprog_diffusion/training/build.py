"""Objects of a training run: accelerator, latents and loader."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration
from torch.utils.data import DataLoader, Dataset, default_collate

from autoprog_diffusion.data.bucket_batches import BucketBatches
from autoprog_diffusion.data.bucket_plan import BucketPlan
from autoprog_diffusion.data.buckets import Bucket, square
from autoprog_diffusion.data.caption_text import has_lists
from autoprog_diffusion.data.decode import read_image, undecoded
from autoprog_diffusion.data.images import ImageSettings, cut_window, seeded
from autoprog_diffusion.data.latents import Latents
from autoprog_diffusion.growth import ConfigError

from .arguments import OutputArguments, flat
from .ends import keeping_workers_alive
from .recipe_arguments import Arguments, DataArguments
from .sharded import shard_on_cpu


if TYPE_CHECKING:
    import datasets


NOISY = ("accelerate", "httpx", "PIL", "matplotlib", "timm")


def make_accelerator(
    output: OutputArguments, *, accumulation: int, mixed_precision: str | None, seed: int
) -> Accelerator:
    """The run's accelerator; on a machine without a GPU it also works under torchrun, over gloo.

    Raises:
        ConfigError: The machine cannot train in this precision.
    """
    folder = Path(output.output_dir)
    try:
        accelerator = _accelerator(output, folder, accumulation, mixed_precision, seed=seed)
        if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
            raise ValueError("fp16 mixed precision on a CPU would be float32.")  # Accelerate drops it without a word
    except ValueError as error:
        if "precision" not in str(error):
            raise
        given = mixed_precision or f"{os.environ.get('ACCELERATE_MIXED_PRECISION')} (of `accelerate config`)"
        raise ConfigError(f"--mixed_precision {given} is not possible here: {error} Use bf16 or no.") from error
    if accelerator.is_main_process:
        logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.WARNING)
    return accelerator


def _accelerator(
    output: OutputArguments, folder: Path, accumulation: int, mixed_precision: str | None, *, seed: int
) -> Accelerator:
    shard_on_cpu(mixed_precision)
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        # The trainer says how many batches every optimizer step takes.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation, sync_with_dataloader=False),
        mixed_precision=mixed_precision,
        log_with=None if output.report_to == "none" else output.report_to,
        project_config=ProjectConfiguration(str(folder), logging_dir=str(folder / output.logging_dir)),
        # The order of the data is a function of seed and epoch alone, so that a resumed run sees the same batches.
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=seed),
    )


class RowDataset(Dataset):
    """Row numbers, and for uncached training the decoded images.

    An item is `index` and, uncached, `pixel_values` (3, H, W) in [-1, 1] and `window` (4,): height and width of the
    image, top and left of the crop in the resized image, in pixels. Where rows have several captions, or captions are
    dropped, it is also `draw`, a random number that decides. With groups each has a first axis of one row each. With a
    plan it is also `item`, its number in the plan.

    Args:
        data: Column `image`, and perhaps `text`.
        args: The recipe's arguments.
        resolution: Side of the images in pixels, or None for row numbers only.
        groups: Rows that are trained together, an item each; None for one row each.
        plan: Sizes of the images; None for squares.
    """

    def __init__(
        self,
        data: datasets.Dataset,
        args: Arguments,
        resolution: int | None,
        groups: Sequence[tuple[int, ...]] | None = None,
        plan: BucketPlan | None = None,
    ) -> None:
        self._data = undecoded(data)
        self._images = image_settings(args.data)
        self._seed = args.train.seed
        self._resolution = resolution
        self._groups = groups
        self._plan = plan
        self._draws = has_lists(data) or drops_captions(args)
        self.epoch = 0

    def __len__(self) -> int:
        if self._plan is not None:
            return len(self._plan)
        return len(self._data if self._groups is None else self._groups)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # Crop and flip depend on seed, epoch and item alone: the same in any worker, and after a resume.
        generator = seeded(self._seed, self.epoch, index)
        if self._plan is not None:
            row = int(self._plan.rows[index])
            bucket = self._plan.buckets[int(self._plan.places[index])]
            return {**self._item(row, generator, bucket), "item": index}
        if self._groups is None:
            return self._item(index, generator)
        return default_collate([self._item(row, generator) for row in self._groups[index]])

    def _item(self, row: int, generator: torch.Generator, bucket: Bucket | None = None) -> dict[str, Any]:
        item: dict[str, Any] = {"index": row}
        if self._draws:
            # A generator of its own: crops are the same with one caption and with several.
            item["draw"] = torch.randint(2**62, (), generator=seeded(self._seed, self.epoch, row, 1))
        if self._resolution is None:
            return item
        image = read_image(self._data, row)
        size = bucket or square(self._resolution)
        cut = cut_window(image, size.height, size.width, self._images, generator)
        window = torch.tensor([image.height, image.width, *cut.corner])
        return {**item, "pixel_values": cut.pixels, "window": window}


def drops_captions(args: Arguments) -> bool:
    """Whether some images train without their captions."""
    return bool(flat(asdict(args)).get("proportion_empty_prompts"))


def image_settings(data: DataArguments) -> ImageSettings:
    """Interpolation, crop and flip of the arguments."""
    return ImageSettings(
        interpolation=data.image_interpolation_mode,
        center_crop=data.center_crop,
        random_flip=data.random_flip,
    )


def make_latents(
    pipeline: Any,
    data: datasets.Dataset,
    args: Arguments,
    accelerator: Accelerator,
    *,
    resolution: int,
    held_out: bool = False,
    plan: BucketPlan | None = None,
) -> Latents:
    """Latents of the data, cached in the output folder.

    Those of held-out images are without mirror images and random crops, and always cached: they are few.
    """
    folder = Path(args.output.output_dir) / "cache"
    images = image_settings(args.data)
    return Latents(
        pipeline.vae,
        data,
        accelerator,
        resolution=resolution,
        folder=folder / "held_out" if held_out else folder,
        images=replace(images, center_crop=True, random_flip=False) if held_out else images,
        plan=plan,
        cached=held_out or args.data.cache_latents,
        dtype=args.data.cache_dtype,
    )


def make_loader(
    data: datasets.Dataset,
    args: Arguments,
    resolution: int,
    groups: Sequence[tuple[int, ...]] | None = None,
    *,
    plan: BucketPlan | None = None,
    processes: int = 1,
) -> DataLoader:
    """Shuffled batches of `RowDataset`, the last incomplete one dropped; with a plan, batches of one bucket each.

    Args:
        data: Column `image`, and perhaps `text`.
        args: The recipe's arguments.
        resolution: Side of the images in pixels.
        groups: As `RowDataset` takes them.
        plan: Sizes of the images; None for squares.
        processes: Of the run; with a plan they get their batches together.
    """
    train = args.train
    rows = RowDataset(data, args, None if args.data.cache_latents else resolution, groups, plan)
    order: dict[str, Any] = {"batch_size": train.train_batch_size, "shuffle": True, "drop_last": True}
    if plan is not None:
        batches = BucketBatches(
            plan,
            rows,
            batch_size=train.train_batch_size,
            processes=processes,
            seed=train.seed,
            incomplete=args.data.incomplete_batches,
        )
        order = {"batch_sampler": batches}
    return DataLoader(
        rows,
        **order,
        num_workers=0 if args.data.cache_latents else args.data.dataloader_num_workers,
        # Its own generator: starting an epoch must not advance the one that draws the noise.
        generator=torch.Generator().manual_seed(train.seed),
        worker_init_fn=keeping_workers_alive(),
    )
