"""Batches and steps by the gradient noise scale: what a step on more samples, or on fewer, is worth.

McCandlish et al. 2018 (arXiv 1812.06162), sections 2.2 and 2.3: N steps on B samples get as far as N' steps on B'
where N / (1 + B_noise / B) = N' / (1 + B_noise / B'). The samples that this takes are proportional to B + B_noise: the
fewest with the smallest batch, twice as many with the critical one, B = B_noise, which needs twice the fewest steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from autoprog_diffusion.growth.errors import SearchError


WASTE = 0.25  # of the fewest samples: what the largest batch worth having may take on top of them
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the batch, in the table


class NoiseInterval(Protocol):
    """The members of a `noise_estimate.NoiseEstimate` that advice needs, in samples; inf where nothing bounds them."""

    @property
    def samples(self) -> float:
        """The noise scale."""
        ...

    @property
    def low(self) -> float:
        """Lower end of its interval."""
        ...

    @property
    def high(self) -> float:
        """Upper end of its interval."""
        ...


def efficiency(batch: float, noise: float) -> float:
    """What a step on `batch` samples gains of what one without noise gains: 1 / (1 + noise / batch).

    Example:
        >>> efficiency(32, noise=96)
        0.25
    """
    return 1 / (1 + noise / batch)


def sample_ratio(batch: float, new_batch: float, noise: float) -> float:
    """How many times the samples of batch `batch` another one needs to get as far.

    Example:
        >>> sample_ratio(32, 16, noise=32)
        0.75
    """
    if math.isinf(noise):
        return 1.0
    return (new_batch + noise) / (batch + noise)


def steps_to_match(batch: float, steps: float, new_batch: float, noise: float) -> float:
    """Steps on `new_batch` samples that get as far as `steps` on `batch`.

    Args:
        batch: Samples of a step.
        steps: Number of steps.
        new_batch: Samples of the steps that are asked for.
        noise: The noise scale in samples; inf is allowed, where only the number of samples counts.

    Example:
        >>> steps_to_match(32, 1000, 16, noise=32)
        1500.0
    """
    return steps * sample_ratio(batch, new_batch, noise) * batch / new_batch


@dataclass(frozen=True)
class BatchAdvice:
    """What a noise scale says about a run.

    Attributes:
        batch: Samples of an optimizer step of the run.
        steps: Its optimizer steps.
        noise: The noise scale with its interval.

    Raises:
        SearchError: `batch` or `steps` is not above 0.
    """

    batch: float
    steps: int
    noise: NoiseInterval

    def __post_init__(self) -> None:
        for name in ("batch", "steps"):
            value = getattr(self, name)
            if not value > 0:
                raise SearchError(f"{name}={value} is not allowed: use a number above 0.")

    @property
    def critical(self) -> float:
        """Samples of a step from which on more of them save few steps: the noise scale, or inf."""
        return self.noise.samples

    @property
    def recommended(self) -> float:
        """The largest batch that takes at most a quarter more samples than the smallest: noise / 4, or inf."""
        return WASTE * self.noise.samples

    def steps_with(self, batch: float) -> int:
        """Steps on `batch` samples that get as far as the run, rounded up."""
        return math.ceil(steps_to_match(self.batch, self.steps, batch, self.noise.samples))

    def lines(self) -> list[str]:
        """The advice in words, and a table of batches around the run's."""
        low, high = (_count(value) for value in (self.noise.low, self.noise.high))
        words = [
            f"gradient noise scale: {_count(self.noise.samples)} images (95 %: {low} to {high}).",
            f"{self.steps} steps of {self.batch:g} images get as far as",
        ]
        for factor in FACTORS:
            batch = factor * self.batch
            if batch >= 1:
                words.append(self._row(batch))
        words.append(self._verdict())
        return words

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _row(self, batch: float) -> str:
        ratios = [sample_ratio(self.batch, batch, noise) for noise in (self.noise.low, self.noise.high)]
        between = f"{min(ratios):.2f} to {max(ratios):.2f}"
        return f"  {self.steps_with(batch):>8,} steps of {batch:>6g} images, with {between} times the images"

    def _verdict(self) -> str:
        if self.batch > WASTE * self.noise.high:
            return (
                f"{self.batch:g} images a step are more than are worth having: use about {_count(self.recommended)}, "
                "for more steps, or as few as take your devices no more time an image."
            )
        if self.batch >= WASTE * self.noise.low:
            return f"{self.batch:g} images a step are a good choice, as far as the measurement goes."
        return (
            f"up to {_count(WASTE * self.noise.low)} images a step cost hardly more images: worth it where your "
            "devices compute a larger batch in less time an image. Accumulation alone does not."
        )


def _count(samples: float) -> str:
    return "infinitely many" if math.isinf(samples) else f"{samples:,.0f}"
