"""Fixed noise and fixed, stratified timesteps: functions of a seed, the number of an image and that of a draw."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


EDGE = 1e-6  # times keep this distance from 0 and 1, where some distributions are infinite


@dataclass(frozen=True)
class Draw:
    """Times and noise of one batch in one draw, for a loss function to use instead of random ones.

    Attributes:
        times: (N,) float64 on the CPU, in (0, 1): shares of the distribution of timesteps, least noise first.
        keys: Of every sample, numbers that its noise follows from.
        device: Where `timesteps` and `noise` are put.
    """

    times: Tensor
    keys: tuple[tuple[int, ...], ...]
    device: torch.device

    def timesteps(self, count: int) -> Tensor:
        """(N,) int64 timesteps of a scheduler that has `count` of them: 0 is the one of least noise."""
        return (self.times * count).long().to(self.device)

    def noise(self, like: Tensor, stream: int = 0) -> Tensor:
        """Standard normal noise, the same on every device and in batches of any size.

        Args:
            like: (N, ...) of which shape and type are taken.
            stream: Another number gives other noise.
        """
        rows = []
        for key in self.keys:
            generator = seeded(*key, stream)
            rows.append(torch.randn(like.shape[1:], generator=generator))
        return torch.stack(rows).to(self.device, like.dtype)

    def sample(self, index: int) -> Draw:
        """The draw of one sample of the batch."""
        times = self.times[index : index + 1]
        return Draw(times, self.keys[index : index + 1], self.device)


def seeded(*numbers: int) -> torch.Generator:
    """A generator on the CPU whose draws depend on the numbers alone."""
    return torch.Generator().manual_seed(mixed(*numbers))


def mixed(*numbers: int) -> int:
    """One number of 63 bits from several, the same in every version of Python."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stratified_times(images: int, draws: int, seed: int) -> Tensor:
    """Times of all images in all draws, (draws, images) float64 in (0, 1).

    Every draw has one time in each of as many even parts of [0, 1] as there are images. The times of one image are
    spread evenly over [0, 1], so that no image counts for one kind of timestep alone.

    Args:
        images: Number of images.
        draws: Number of draws.
        seed: Another one gives other times.
    """
    generator = seeded(seed, images, draws)
    order = torch.randperm(images, generator=generator).double()
    inside = torch.rand(draws, images, generator=generator, dtype=torch.float64)
    shift = torch.arange(draws).double() / draws
    times = (order + inside) / images + shift[:, None]
    return (times % 1.0).clamp(EDGE, 1 - EDGE)
