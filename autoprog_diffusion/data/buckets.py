"""Aspect-ratio buckets: the sizes that images of one area may have, and which of them is an image's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoprog_diffusion.growth.errors import ConfigError


SMOOTH = 16  # steps on the side of a square, where no flag says how wide they are
# Of products of a side and an aspect ratio, which may be a whole number but for rounding.
_EPSILON = 1e-9


@dataclass(frozen=True)
class Bucket:
    """A size of training images.

    Attributes:
        height: In pixels.
        width: In pixels.
        resolution: Side in pixels of the square whose area is not exceeded.
    """

    height: int
    width: int
    resolution: int

    @property
    def area(self) -> int:
        """Pixels of an image."""
        return self.height * self.width

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.width / self.height

    @property
    def name(self) -> str:
        """Width and height, as pictures are called."""
        return f"{self.width}x{self.height}"

    def at(self, scale: float, multiple: int) -> tuple[int, int]:
        """Height and width in pixels at a stage's resolution.

        Args:
            scale: Side of a square at that resolution over its side at the full one.
            multiple: Both become the nearest multiple of it, and the aspect ratio changes by so much.
        """
        if scale == 1.0:
            return self.height, self.width
        return _rounded(scale * self.height, multiple), _rounded(scale * self.width, multiple)


def square(side: int) -> Bucket:
    """The bucket of a side of so many pixels."""
    return Bucket(height=side, width=side, resolution=side)


def bucket_sizes(resolution: int, step: int, max_aspect: float) -> tuple[Bucket, ...]:
    """The largest sizes of an area, from high to wide.

    Both sides are multiples of the step, the area is at most that of the square, the longer side at most `max_aspect`
    times the shorter one; and no other such size is at least as long on both sides.

    Args:
        resolution: Side of the square in pixels, a multiple of the step.
        step: In pixels.
        max_aspect: 1 or more; 1 is the square alone.

    Example:
        >>> [bucket.name for bucket in bucket_sizes(512, 64, 2.0)]
        ['384x640', '448x576', '512x512', '576x448', '640x384']
    """
    found = []
    longest = 0
    # A longer shorter side comes first: what it allows hides what is shorter on both sides.
    for short in range(resolution, 0, -step):
        most = min(resolution**2 // short, int(max_aspect * short + _EPSILON))
        long = most // step * step
        if long > longest and long >= short:
            longest = long
            found.append((short, long))
    buckets = set()
    for short, long in found:
        buckets.add(Bucket(height=long, width=short, resolution=resolution))
        buckets.add(Bucket(height=short, width=long, resolution=resolution))
    return tuple(sorted(buckets, key=lambda bucket: bucket.aspect))


def step_of(resolution: int, multiple: int) -> int:
    """The step of a resolution where no flag says it: the largest multiple that divides the side into 16 or more.

    Args:
        resolution: Side of the square in pixels, a multiple of `multiple`.
        multiple: What every side must be a multiple of.

    Example:
        >>> step_of(1024, 16), step_of(512, 8), step_of(64, 8)
        (64, 32, 8)
    """
    step = multiple
    for candidate in range(multiple, resolution // SMOOTH + 1, multiple):
        if resolution % candidate == 0:
            step = candidate
    return step


def nearest(aspects: np.ndarray, buckets: Sequence[Bucket]) -> np.ndarray:
    """(N,) numbers of the buckets whose aspect ratios are nearest, by the ratio of the ratios: the least is cut off.

    Args:
        aspects: (N,) widths over heights of images.
        buckets: Any; equally near ones give the one that is higher.
    """
    own = np.log([bucket.aspect for bucket in buckets])
    order = np.argsort(own, kind="stable")
    edges = (own[order][1:] + own[order][:-1]) / 2
    return order[np.searchsorted(edges, np.log(aspects))]


def check_step(step: int, multiple: int, resolutions: Sequence[int]) -> None:
    """Refuse a step that the model cannot divide, or that does not divide a side.

    Raises:
        ConfigError: The message names the multiple, or the side and the nearest one.
    """
    if step <= 0 or step % multiple:
        near = _rounded(step, multiple)
        raise ConfigError(
            f"--bucket_step {step} is not a multiple of {multiple} (of VAE, denoiser and pipeline): use {near}."
        )
    for side in resolutions:
        if side % step:
            raise ConfigError(
                f"--bucket_step {step} does not divide the resolution {side}: use a step such as "
                f"{math.gcd(step, side)}, or the resolution {_rounded(side, step)}."
            )


def _rounded(length: float, multiple: int) -> int:
    """The nearest multiple, at least one."""
    return max(1, round(length / multiple)) * multiple
