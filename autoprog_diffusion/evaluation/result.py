"""Losses of an evaluation, and whether two evaluations differ by more than their noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


CLEAR = 2.0  # standard errors that a difference must have to be called one


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Held-out losses of one model.

    Attributes:
        losses: (draws, images) float64 on the CPU.
        times: (draws, images) float64, where in the distribution of timesteps each was taken.
        ranges: Number of even ranges of times.
        seconds: Wall time that it took.
    """

    losses: Tensor
    times: Tensor
    ranges: int
    seconds: float = 0.0

    @property
    def loss(self) -> float:
        """Mean over images and draws."""
        return float(self.losses.mean())

    @property
    def noise(self) -> float:
        """Standard error of `loss` over the draws: what other noise and timesteps would change.

        With D draws of mean losses L_k it is sqrt(sum (L_k - L)^2 / (D (D - 1))); infinite with one draw. A difference
        between two evaluations is far less noisy than that: take `difference`.
        """
        return standard_error(self.losses.mean(dim=1))

    @property
    def by_range(self) -> list[float]:
        """Mean loss in every range of times, least noise first; NaN in a range without a time."""
        members = range_of(self.times, self.ranges)
        means = []
        for index in range(self.ranges):
            inside = members == index
            means.append(float(self.losses[inside].mean()))
        return means

    @property
    def bounds(self) -> list[list[float]]:
        """First and last time of every range."""
        return range_bounds(self.ranges)


@dataclass(frozen=True)
class Difference:
    """How much higher the loss of one evaluation is than that of another one.

    Attributes:
        value: The difference of the means.
        noise: Its standard error.
    """

    value: float
    noise: float

    @property
    def is_clear(self) -> bool:
        """Whether it is more than noise: above two standard errors, on either side."""
        return abs(self.value) > CLEAR * self.noise

    @property
    def is_lower(self) -> bool:
        """Whether the loss is lower by more than noise."""
        return self.is_clear and self.value < 0

    @property
    def is_higher(self) -> bool:
        """Whether the loss is higher by more than noise."""
        return self.is_clear and self.value > 0


def difference(later: Evaluation, earlier: Evaluation) -> Difference:
    """The paired difference of two evaluations, which have images, noise and timesteps in common.

    With d_ik the difference on image i in draw k, and e_ik what is left of it after the mean difference in its range
    of timesteps is taken away, the noise is sqrt(sum_i (mean_k e_ik)^2 / (n (n - 1))) for n images: an image counts
    once, however many draws it has. So the noise is that of the draws and that of the choice of images. What the two
    evaluations share cancels. It is infinite with one image.

    Args:
        later: An evaluation.
        earlier: Another one by the same `HeldOut`.
    """
    differences = later.losses - earlier.losses
    members = range_of(later.times, later.ranges)
    left = differences.clone()
    for index in range(later.ranges):
        inside = members == index
        if inside.any():
            left[inside] -= differences[inside].mean()
    return Difference(float(differences.mean()), standard_error(left.mean(dim=0)))


def standard_error(values: Tensor) -> float:
    """Of the mean of (n,) independent values; infinite where there is one."""
    if len(values) < 2:
        return math.inf
    return float(values.std()) / math.sqrt(len(values))


def range_of(times: Tensor, ranges: int) -> Tensor:
    """Number of the range that every time lies in, int64."""
    return (times * ranges).long().clamp(max=ranges - 1)


def range_bounds(ranges: int) -> list[list[float]]:
    """First and last time of every range.

    Example:
        >>> range_bounds(2)
        [[0.0, 0.5], [0.5, 1.0]]
    """
    edges = torch.linspace(0, 1, ranges + 1, dtype=torch.float64).tolist()
    return [[low, high] for low, high in zip(edges, edges[1:])]
