"""`BucketBatches`: batches of one size each, in an order that depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from torch.utils.data import Sampler

from .bucket_plan import BucketPlan


Incomplete = Literal["drop", "fill"]


class HasEpoch(Protocol):
    """A data set that knows the epoch."""

    epoch: int


@dataclass(frozen=True)
class Left:
    """What an epoch does with the items that fill no batch.

    Attributes:
        dropped: Items that an epoch leaves out; every epoch others.
        repeated: Items that an epoch takes again.
    """

    dropped: int
    repeated: int


class BucketBatches(Sampler[list[int]]):
    """Batches for all processes in turn: as many for each, and those of one pass of one resolution where that goes.

    The items of a bucket are shuffled and cut into batches; the rest is left out in this epoch, or filled up with
    items of the bucket. The batches of a resolution are dealt to the processes together, so that none waits for
    another one's larger images; those that are left over are dealt whatever their resolution.

    Args:
        plan: Items and buckets.
        rows: Knows the epoch.
        batch_size: Items of a batch.
        processes: Of the run.
        seed: Of the order.
        incomplete: What to do with a rest that fills no batch.

    Attributes:
        left: What becomes of the rests.
    """

    # Accelerate takes every process's batches from these.
    drop_last = True

    def __init__(
        self,
        plan: BucketPlan,
        rows: HasEpoch,
        *,
        batch_size: int,
        processes: int,
        seed: int,
        incomplete: Incomplete,
    ) -> None:
        self.batch_size = batch_size
        self._plan = plan
        self._rows = rows
        self._processes = processes
        self._seed = seed
        self._fills = incomplete == "fill"
        self._items = [plan.items_of(place).numpy() for place in range(len(plan.buckets))]
        batches = sum(map(self._number_of, plan.counts()))
        self._passes = -(-batches // processes) if self._fills else batches // processes
        shown = len(self) * batch_size
        self.left = Left(dropped=max(0, len(plan) - shown), repeated=max(0, shown - len(plan)))
        areas = np.array([bucket.area for bucket in plan.buckets])
        weights = np.array(list(map(self._number_of, plan.counts())))
        self._mean_area = float((areas * weights).sum() / max(1, weights.sum()))
        self._epoch_areas: tuple[int, np.ndarray] = (-1, areas)

    def __len__(self) -> int:
        return self._passes * self._processes

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches_of(self._rows.epoch):
            yield batch.tolist()

    def batches_of(self, epoch: int) -> list[np.ndarray]:
        """All batches of an epoch: those of the first process are every P-th one from the first on."""
        random = np.random.default_rng((self._seed, epoch))
        groups: dict[int, list[np.ndarray]] = {}
        for bucket, items in zip(self._plan.buckets, self._items):
            groups.setdefault(bucket.resolution, []).extend(self._cut(random.permutation(items)))
        passes: list[list[np.ndarray]] = []
        over: list[np.ndarray] = []
        for batches in groups.values():
            dealt, rest = self._deal(_shuffled(batches, random))
            passes += dealt
            over += rest
        dealt, rest = self._deal(_shuffled(over, random))
        passes += dealt
        if rest and self._fills:
            known = [batch for each in groups.values() for batch in each]
            missing = self._processes - len(rest)
            passes.append(rest + [known[number % len(known)] for number in range(missing)])
        return [batch for each in _shuffled(passes, random) for batch in each]

    def work(self, epoch: int, first: int, passes: int) -> float:
        """Pixels of some passes over those of as many mean ones.

        Args:
            epoch: Which one.
            first: Passes of it that are done.
            passes: How many.
        """
        known, areas = self._epoch_areas
        if known != epoch:
            places = self._plan.places.numpy()
            sizes = np.array([bucket.area for bucket in self._plan.buckets])
            areas = np.array([sizes[places[batch[0]]] for batch in self.batches_of(epoch)])
            self._epoch_areas = (epoch, areas)
        own = areas[first * self._processes : (first + passes) * self._processes]
        return float(own.mean() / self._mean_area)

    def _number_of(self, count: int) -> int:
        """Batches of a bucket of so many items."""
        return -(-count // self.batch_size) if self._fills else count // self.batch_size

    def _cut(self, items: np.ndarray) -> list[np.ndarray]:
        """Whole batches of the items of a bucket."""
        number = self._number_of(len(items))
        if not number:
            return []
        filled = np.resize(items, number * self.batch_size)
        return list(filled.reshape(number, self.batch_size))

    def _deal(self, batches: Sequence[np.ndarray]) -> tuple[list[list[np.ndarray]], list[np.ndarray]]:
        """Batches for all processes at a time, and the rest."""
        whole = len(batches) // self._processes * self._processes
        passes = []
        for start in range(0, whole, self._processes):
            passes.append(list(batches[start : start + self._processes]))
        return passes, list(batches[whole:])


def _shuffled(items: Sequence, random: np.random.Generator) -> list:
    """Any objects in random order."""
    return [items[place] for place in random.permutation(len(items))]
