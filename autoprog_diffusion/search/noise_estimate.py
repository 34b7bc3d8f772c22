"""The gradient noise scale: how many samples a step needs before more of them stop to pay.

McCandlish et al. 2018 (arXiv 1812.06162), section 2.2: with the mean gradient G of a sample and the covariance Sigma
of the samples' gradients, a step on B samples gains 1 / (1 + B_simple / B) of what a step without noise gains, where
B_simple = tr(Sigma) / |G|^2. Learning rates are taken to be tuned, and steps to be those of plain gradient descent.

Appendix A.1 takes both from the squared norms of the gradients at two batch sizes. Here the small batch is a training
call of b samples, with gradient g_i, and the big one all n calls together:

    |G|^2     = (n b |mean g|^2 - b mean |g_i|^2) / (n b - b)
    tr(Sigma) = (mean |g_i|^2 - |mean g|^2) / (1 / b - 1 / (n b))

The first equals the mean of <g_i, g_j> over all pairs of calls, so both are unbiased. Their ratio is taken at the end.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.growth.values import JSON

from .batch_advice import BatchAdvice


FEWEST_CALLS = 3  # a jackknife leaves one of them out, and two must remain
Z95 = 2.0  # standard errors in half of a 95 % interval


@dataclass(frozen=True)
class CallProducts:
    """Products of the gradient of one call, by the name of a unit.

    Attributes:
        samples: Samples of the call, b.
        squares: |g_i|^2.
        products: <g_i, g_1 + ... + g_n> with the sum of the gradients of all calls.
    """

    samples: int
    squares: dict[str, float]
    products: dict[str, float]


@dataclass(frozen=True)
class NoiseEstimate:
    """The noise scale of some parameters.

    Attributes:
        signal: |G|^2; noise makes it negative at times.
        noise: tr(Sigma).
        inverse: |G|^2 / tr(Sigma), which is nearly normal where its inverse is not.
        error: Standard error of `inverse`, by a jackknife over calls.
    """

    signal: float
    noise: float
    inverse: float
    error: float

    @property
    def samples(self) -> float:
        """B_simple in samples; inf where no common gradient was found in the noise."""
        return _inverted(self.inverse)

    @property
    def low(self) -> float:
        """Lower end of its 95 % interval, in samples."""
        return _inverted(self.inverse + Z95 * self.error)

    @property
    def high(self) -> float:
        """Upper end of its 95 % interval, in samples; inf where no common gradient may be there at all."""
        return _inverted(self.inverse - Z95 * self.error)

    def to_dict(self) -> JSON:
        """Plain JSON types; None for inf."""
        values = {
            "signal": self.signal,
            "noise": self.noise,
            "samples": self.samples,
            "low": self.low,
            "high": self.high,
        }
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


@dataclass(frozen=True)
class NoiseScale:
    """What was measured: products of the gradients of some calls, of all ranks.

    Attributes:
        calls: At least three.
    """

    calls: tuple[CallProducts, ...]

    def __post_init__(self) -> None:
        if len(self.calls) < FEWEST_CALLS:
            raise SearchError(
                f"the noise scale was asked of {len(self.calls)} training calls, at least {FEWEST_CALLS} are needed: "
                "let the loop make more calls before it is measured, or give more batches."
            )

    @property
    def units(self) -> tuple[str, ...]:
        """Names of the units whose gradients were measured."""
        return tuple(self.calls[0].squares)

    @property
    def batch(self) -> float:
        """Mean number of samples of a call."""
        return sum(call.samples for call in self.calls) / len(self.calls)

    @property
    def total(self) -> NoiseEstimate:
        """The noise scale of all parameters that were measured."""
        return self.of(self.units)

    def of(self, units: Collection[str]) -> NoiseEstimate:
        """The noise scale of some units together, as of the blocks of a later stage.

        Raises:
            SearchError: There is none, or one was not measured.
        """
        unknown = sorted(set(units) - set(self.units))
        if unknown or not units:
            raise SearchError(f"units {unknown or '()'} were not measured: choose from {sorted(self.units)}.")
        rows = [_Row.of(call, units) for call in self.calls]
        together = sum(row.product for row in rows)
        signal, noise = _signal_and_noise(rows, together)
        inverses = []
        for row in rows:
            others = [other for other in rows if other is not row]
            # |s - g|^2 = |s|^2 - 2 <g, s> + |g|^2
            inverses.append(_ratio(*_signal_and_noise(others, together - 2 * row.product + row.square)))
        return NoiseEstimate(signal, noise, inverse=_ratio(signal, noise), error=_jackknife(inverses))

    def advice(self, batch: float, steps: int) -> BatchAdvice:
        """What the noise scale says about a run.

        Args:
            batch: Samples of an optimizer step, over all accumulated calls and ranks.
            steps: Optimizer steps of the run.

        Raises:
            SearchError: One of them is not above 0.
        """
        return BatchAdvice(batch, steps, self.total)


@dataclass(frozen=True, eq=False)
class _Row:
    """Samples, |g_i|^2 and <g_i, sum of all> of one call, summed over units."""

    samples: int
    square: float
    product: float

    @classmethod
    def of(cls, call: CallProducts, units: Iterable[str]) -> _Row:
        names = sorted(units)
        return cls(
            samples=call.samples,
            square=sum(call.squares[name] for name in names),
            product=sum(call.products[name] for name in names),
        )


def _signal_and_noise(rows: Sequence[_Row], together: float) -> tuple[float, float]:
    """Unbiased |G|^2 and tr(Sigma) from rows, and from the squared norm of the sum of their gradients.

    Calls of unequal sizes are allowed: |g_i|^2 is |G|^2 + tr(Sigma) / b_i in the mean.
    """
    count = len(rows)
    squares = sum(row.square for row in rows)
    signal = (together - squares) / (count * (count - 1))
    noise = (squares - count * signal) / sum(1 / row.samples for row in rows)
    return signal, noise


def _ratio(signal: float, noise: float) -> float:
    # Calls whose gradients are equal have no noise.
    return signal / noise if noise > 0 else math.inf


def _jackknife(values: Sequence[float]) -> float:
    """Standard error from the values that leave one call out each."""
    if not all(map(math.isfinite, values)):
        return 0.0
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    return math.sqrt(squares * (len(values) - 1) / len(values))


def _inverted(inverse: float) -> float:
    return 1 / inverse if inverse > 0 else math.inf
