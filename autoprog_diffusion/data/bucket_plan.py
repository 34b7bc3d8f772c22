"""`BucketPlan`: which image trains at which size, once at each of the resolutions that it has pixels for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .buckets import Bucket, bucket_sizes, nearest, square


@dataclass(frozen=True, eq=False)
class BucketPlan:
    """Items that train: an image at a size.

    Attributes:
        buckets: The sizes.
        rows: (items,) row of the data of every item.
        places: (items,) number of the bucket of every item.
        images: Rows of the data.
    """

    buckets: tuple[Bucket, ...]
    rows: Tensor
    places: Tensor
    images: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def longest(self) -> Bucket:
        """The widest bucket; one is as high, since sizes come in pairs."""
        return max(self.buckets, key=lambda bucket: bucket.aspect)

    def items_of(self, place: int) -> Tensor:
        """(n,) sorted items of a bucket."""
        return torch.nonzero(self.places == place).flatten()

    def counts(self) -> list[int]:
        """Number of items of every bucket."""
        return torch.bincount(self.places, minlength=len(self.buckets)).tolist()

    def largest_of(self, rows: Tensor) -> Tensor:
        """(n,) items of the rows of the data, each at the largest of its sizes, in the order of the rows."""
        areas = torch.tensor([bucket.area for bucket in self.buckets])[self.places]
        best: dict[int, int] = {}
        for item in torch.argsort(areas, stable=True).tolist():
            best[int(self.rows[item])] = item
        return torch.tensor([best[row] for row in rows.tolist()])

    def groups(self, items: Tensor, size: int) -> list[Tensor]:
        """Items in batches of one bucket each, every item once; the last batch of a bucket may be smaller.

        Args:
            items: (n,) of the plan.
            size: Of a batch.
        """
        found = []
        for place in range(len(self.buckets)):
            own = items[self.places[items] == place]
            if len(own):
                found += own.split(size)
        return found


@dataclass(frozen=True)
class Placing:
    """What became of the images that were put into buckets.

    Attributes:
        plan: Items and buckets.
        enlarged: Images that have fewer pixels than the smallest size that they have to fill.
        beyond: Images that are longer than the longest bucket.
    """

    plan: BucketPlan
    enlarged: int
    beyond: int


def one_size(images: int, side: int) -> BucketPlan:
    """The plan where all images are squares.

    Args:
        images: Rows of the data.
        side: In pixels.
    """
    rows = torch.arange(images)
    return BucketPlan(
        (square(side),),
        rows=rows,
        places=torch.zeros_like(rows),
        images=images,
    )


def place_images(sizes: Tensor, steps: dict[int, int], max_aspect: float) -> Placing:
    """Put every image into the bucket of the nearest aspect ratio, at every resolution that it has pixels for.

    An image that has too few pixels for all of them is enlarged to the smallest.

    Args:
        sizes: (N, 2) heights and widths of the images in pixels.
        steps: Resolution -> step of the buckets' sides in pixels.
        max_aspect: Longer side over the shorter one of a bucket, at most.
    """
    lengths = sizes.double().numpy()
    aspects = lengths[:, 1] / lengths[:, 0]
    buckets: list[Bucket] = []
    rows = []
    places = []
    enlarged = 0
    for resolution in sorted(steps):
        own = bucket_sizes(resolution, steps[resolution], max_aspect)
        chosen = nearest(aspects, own)
        fits = _fills(lengths, own, chosen)
        if not buckets:
            enlarged = int((~fits).sum())
            fits[:] = True
        rows.append(np.flatnonzero(fits))
        places.append(chosen[fits] + len(buckets))
        buckets += own
    plan = BucketPlan(
        tuple(buckets),
        rows=torch.from_numpy(np.concatenate(rows)),
        places=torch.from_numpy(np.concatenate(places)),
        images=len(lengths),
    )
    return Placing(
        plan,
        enlarged=enlarged,
        beyond=int((np.maximum(aspects, 1 / aspects) > plan.longest.aspect).sum()),
    )


def merge_small(plan: BucketPlan, sizes: Tensor, least: int) -> tuple[BucketPlan, int]:
    """Give the items of buckets that hold too few to the nearest bucket of their resolution that holds enough.

    Args:
        plan: Of any images.
        sizes: As `place_images` takes them.
        least: Items of a bucket. Where no bucket of a resolution holds as many, all stay as they are.

    Returns:
        The plan, and how many items moved.
    """
    lengths = sizes.double().numpy()
    places = plan.places.numpy().copy()
    counts = np.bincount(places, minlength=len(plan.buckets))
    moved = 0
    for resolution in sorted({bucket.resolution for bucket in plan.buckets}):
        own = [place for place, bucket in enumerate(plan.buckets) if bucket.resolution == resolution]
        large = [place for place in own if counts[place] >= least]
        small = [place for place in own if 0 < counts[place] < least]
        if not large or not small:
            continue
        items = np.flatnonzero(np.isin(places, small))
        shapes = lengths[plan.rows.numpy()[items]]
        kept = nearest(shapes[:, 1] / shapes[:, 0], [plan.buckets[place] for place in large])
        places[items] = np.asarray(large)[kept]
        moved += len(items)
    merged = BucketPlan(
        plan.buckets,
        rows=plan.rows,
        places=torch.from_numpy(places),
        images=plan.images,
    )
    return merged, moved


def _fills(lengths: np.ndarray, buckets: Sequence[Bucket], chosen: np.ndarray) -> np.ndarray:
    """(N,) bool: whether an image covers its bucket without being enlarged."""
    wanted = np.array([(bucket.height, bucket.width) for bucket in buckets])[chosen]
    return np.all(lengths >= wanted, axis=1)


def cut_off(plan: BucketPlan, sizes: Tensor) -> float:
    """Mean share of the pixels of an image that its bucket's shape cuts off.

    Args:
        plan: Of the images.
        sizes: As `place_images` takes them.
    """
    lengths = sizes.double()[plan.rows]
    own = torch.tensor([bucket.aspect for bucket in plan.buckets], dtype=torch.float64)[plan.places]
    ratio = lengths[:, 1] / lengths[:, 0] / own
    return float(1 - torch.minimum(ratio, 1 / ratio).mean())
