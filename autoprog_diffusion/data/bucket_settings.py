"""Settings of aspect-ratio buckets: what is refused, and what a user is told of the plan that they give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from autoprog_diffusion.growth.errors import ConfigError

from .bucket_batches import BucketBatches, Incomplete
from .bucket_plan import BucketPlan, Placing, cut_off, merge_small, place_images
from .buckets import check_step, step_of
from .errors import DataError


# Buckets that a message names.
_NAMED = 6


@dataclass(frozen=True)
class BucketSettings:
    """How images are put into buckets.

    Attributes:
        resolutions: Sides in pixels of the squares whose areas the buckets have; every image trains at each.
        step: What all sides are multiples of, in pixels; None takes `step_of` each resolution.
        max_aspect: Longer side over the shorter one, at most.
        merge: Give images of buckets that fill no batch to the nearest one that does.
        incomplete: What to do with a rest that fills no batch.
    """

    resolutions: tuple[int, ...]
    step: int | None = None
    max_aspect: float = 2.0
    merge: bool = False
    incomplete: Incomplete = "drop"

    def steps(self, multiple: int) -> dict[int, int]:
        """Resolution -> step.

        Args:
            multiple: What the model needs every side to be a multiple of.

        Raises:
            ConfigError: A number is not allowed; the message names the flag and what is.
        """
        if self.max_aspect < 1:
            raise ConfigError(f"--max_aspect {self.max_aspect} is not allowed: use 1 (squares alone) or more.")
        for side in self.resolutions:
            if side <= 0 or side % multiple:
                near = max(1, round(side / multiple)) * multiple
                raise ConfigError(
                    f"--bucket_resolutions {side} is not a multiple of {multiple} (of VAE, denoiser and pipeline): "
                    f"use {near}."
                )
        if len(set(self.resolutions)) < len(self.resolutions):
            raise ConfigError(f"--bucket_resolutions {self.resolutions} names a resolution twice: name each once.")
        if self.step is None:
            return {side: step_of(side, multiple) for side in self.resolutions}
        check_step(self.step, multiple, self.resolutions)
        return dict.fromkeys(self.resolutions, self.step)


def plan_buckets(
    sizes: Tensor, settings: BucketSettings, multiple: int, batch_size: int, notes: list[str]
) -> BucketPlan:
    """The plan of the training images.

    Args:
        sizes: (N, 2) heights and widths of the images in pixels.
        settings: As the flags say.
        multiple: What the model needs every side to be a multiple of.
        batch_size: Images of a batch on a process.
        notes: Gets what a user may not expect, in sentences without a full stop.

    Raises:
        ConfigError: As `BucketSettings.steps`.
        DataError: A bucket holds fewer images than a batch, and nothing says what to do with them; or no image has
            pixels for a resolution.
    """
    placing = place_images(sizes, settings.steps(multiple), settings.max_aspect)
    plan = placing.plan
    _check_used(plan, settings)
    moved = 0
    if settings.merge:
        plan, moved = merge_small(plan, sizes, batch_size)
    if settings.incomplete == "drop":
        _check_small(plan, batch_size)
    filled = [f"{bucket.name}: {count}" for bucket, count in _filled(plan)]
    notes.append(
        f"images train in buckets of aspect ratios (width x height: images) {', '.join(filled)}; their shapes cut off "
        f"{cut_off(plan, sizes):.1%} of the pixels"
    )
    if moved:
        notes.append(
            f"{moved} images of buckets smaller than a batch of {batch_size} are cropped to the nearest larger bucket"
        )
    notes += _placed(placing, settings)
    return plan


def tell_left(batches: BucketBatches, processes: int) -> list[str]:
    """What an epoch does with the images that fill no batch, in sentences without a full stop.

    Args:
        batches: Of the run.
        processes: Of the run.

    Raises:
        DataError: There are fewer batches than processes.
    """
    if not len(batches):
        raise DataError(
            f"all buckets together hold fewer than one batch of {batches.batch_size} for each of {processes} "
            "processes: lower --train_batch_size, start fewer processes, or add images."
        )
    left = batches.left
    over = f" over {processes} processes" if processes > 1 else ""
    if left.dropped:
        return [
            f"every epoch leaves out {left.dropped} images, which fill no batch of {batches.batch_size} in their "
            f"buckets{over}: other ones each time (--incomplete_batches fill trains all)"
        ]
    if left.repeated:
        return [
            f"every epoch trains {left.repeated} images once more, so that the batches of {batches.batch_size} of all "
            f"buckets are full{over}"
        ]
    return []


def table(plan: BucketPlan) -> list[dict[str, int]]:
    """Sides, resolution and number of images of every bucket that holds some."""
    rows = []
    for bucket, count in _filled(plan):
        rows.append(
            {
                "width": bucket.width,
                "height": bucket.height,
                "resolution": bucket.resolution,
                "images": count,
            }
        )
    return rows


def _placed(placing: Placing, settings: BucketSettings) -> list[str]:
    """What became of the images, in sentences without a full stop."""
    plan = placing.plan
    notes = []
    if len(settings.resolutions) > 1:
        notes.append(
            f"{plan.images} images train {len(plan)} times an epoch, at each of the resolutions "
            f"{settings.resolutions} that they have pixels for"
        )
    if placing.enlarged:
        smallest = min(settings.resolutions)
        notes.append(f"{placing.enlarged} images have too few pixels for {smallest}x{smallest}, and are enlarged")
    if placing.beyond:
        notes.append(
            f"{placing.beyond} images are longer than the longest bucket, {plan.longest.name} (--max_aspect "
            f"{settings.max_aspect:g}), and lose more of their pixels"
        )
    return notes


def _check_used(plan: BucketPlan, settings: BucketSettings) -> None:
    """Refuse resolutions that no image trains at."""
    used = {bucket.resolution for bucket, _ in _filled(plan)}
    idle = sorted(set(settings.resolutions) - used)
    if idle:
        raise DataError(
            f"no image has pixels for the resolutions {idle} of --bucket_resolutions: remove them, or add larger "
            "images."
        )


def _check_small(plan: BucketPlan, batch_size: int) -> None:
    """Refuse buckets that would never fill a batch."""
    small = [(bucket, count) for bucket, count in _filled(plan) if count < batch_size]
    if not small:
        return
    names = [f"{bucket.name} ({count})" for bucket, count in small[:_NAMED]]
    more = ", ..." if len(small) > _NAMED else ""
    images = sum(count for _, count in small)
    raise DataError(
        f"buckets that hold fewer images than a batch of {batch_size} would never train their {images} images: "
        f"{', '.join(names)}{more}. Use --merge_buckets (they are cropped to the nearest larger bucket), "
        "--incomplete_batches fill (they are repeated in a batch), a smaller --train_batch_size, a larger "
        "--bucket_step, or a lower --max_aspect."
    )


def _filled(plan: BucketPlan) -> Iterator[tuple]:
    """Every bucket that holds images, and how many."""
    for bucket, count in zip(plan.buckets, plan.counts()):
        if count:
            yield bucket, count
