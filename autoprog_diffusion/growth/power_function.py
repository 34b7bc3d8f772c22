"""The mathematics of power-function averages: widths, decays, and the widths that snapshots of others give.

Equations and algorithms are those of Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion
Models" (arXiv 2312.02696), section 3 and appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ConfigError


WIDEST = 1 / math.sqrt(12)  # relative width of the uniform average, exponent 0
MOST_ERROR = 0.1  # of a profile that is put together from others: norm of the difference over its own


def relative_width(exponent: float) -> float:
    """Standard deviation of t^gamma as a weighting, equation 3: sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2).

    Args:
        exponent: gamma, at least 0.

    Example:
        >>> round(relative_width(3.0), 4), round(relative_width(6.94), 4)
        (0.1633, 0.1)
    """
    return math.sqrt((exponent + 1) / (exponent + 3)) / (exponent + 2)


def exponent_of(width: float) -> float:
    """The exponent gamma of a relative width, the inverse of `relative_width` (algorithm 2 of the paper).

    Args:
        width: In (0, 0.2886]; the widest is the uniform average of all steps.

    Raises:
        ConfigError: No weighting that grows with the step is as wide, or the width is not positive.
    """
    if not 0 < width <= WIDEST:
        raise ConfigError(
            f"an average of the relative width {width} does not exist: use a width above 0 and of at most "
            f"{WIDEST:.4f}, which is the uniform average; {relative_width(3.0):.4f} is that of weights ~ t^3."
        )
    low = 0.0
    high = 1 / width  # sigma < 1 / (gamma + 2)
    for _ in range(200):
        middle = (low + high) / 2
        if relative_width(middle) > width:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def decay(exponent: float, step: int) -> float:
    """Share of the old average that step number `step` (counted from 1) keeps, equation 2: (1 - 1/t)^(gamma + 1).

    The first step takes the weights as they are. After T steps those of step t count
    (t^(gamma + 1) - (t - 1)^(gamma + 1)) / T^(gamma + 1), exactly the integral of the power function over the step.
    t / (t + gamma + 1) is the same up to 1/t^2.
    """
    return (1 - 1 / step) ** (exponent + 1)


def check_widths(widths: Sequence[float], num_training_steps: int | None) -> None:
    """Refuse widths that do not exist, that are named twice, or that are less than a step of the run.

    Args:
        widths: Relative widths.
        num_training_steps: Optimizer steps of the run; None where they are not known.

    Raises:
        ConfigError: For these reasons.
    """
    if not widths or len(set(widths)) < len(widths):
        raise ConfigError(f"widths={tuple(widths)} is not allowed: give one or several different relative widths.")
    for width in widths:
        exponent_of(width)
        if num_training_steps is not None and width * num_training_steps < 1:
            raise ConfigError(
                f"an average of the relative width {width} spans {width * num_training_steps:.2g} of the "
                f"{num_training_steps} steps of this run, and would be the last weights: use a width between "
                f"{1 / num_training_steps:.2g} and {WIDEST:.4f}, or train for longer."
            )


@dataclass(frozen=True)
class Profile:
    """How much every step counts in an average: (gamma + 1) s^gamma / t^(gamma + 1) at step s, equation 1.

    Attributes:
        exponent: gamma.
        step: t, the last step that counts.
    """

    exponent: float
    step: int

    def dot(self, other: Profile) -> float:
        """Integral of the product of two profiles over all steps (appendix C)."""
        early, late = sorted((self, other), key=lambda profile: profile.step)
        product = (early.exponent + 1) * (late.exponent + 1) / (early.exponent + late.exponent + 1)
        return product * (early.step / late.step) ** late.exponent / late.step


def coefficients(wanted: Profile, known: Sequence[Profile]) -> list[float]:
    """Factors of known averages whose sum comes nearest to a wanted one: least squares over the profiles (appendix C).

    Unlike the paper's, the factors sum to one exactly: what has hardly moved in a fine-tune stays where it is.

    Args:
        wanted: Profile of the average to be put together.
        known: Profiles of the snapshots.

    Returns:
        One factor a snapshot.

    Raises:
        ConfigError: The snapshots are too few, or too far apart, for this width.
    """
    count = len(known)
    norms = torch.tensor([profile.dot(profile) for profile in known], dtype=torch.float64).sqrt()
    dots = torch.tensor([[one.dot(other) for other in known] for one in known], dtype=torch.float64)
    wishes = torch.tensor([wanted.dot(profile) for profile in known], dtype=torch.float64)
    # Profiles of equal norm, and the condition on the sum as a last row and column.
    system = torch.zeros(count + 1, count + 1, dtype=torch.float64)
    system[:count, :count] = dots / norms / norms[:, None]
    system[:count, count] = 1 / norms
    system[count, :count] = 1 / norms
    largest = system[count].abs().max()
    system[count] /= largest
    system[:, count] /= largest
    right = torch.cat([wishes / norms, 1 / largest[None]])
    solution = torch.linalg.lstsq(system, right[:, None], driver="gelsd").solution[:count, 0]
    factors = solution / norms
    factors /= factors.sum()
    error = _error(wanted, factors, dots, wishes)
    if not error < MOST_ERROR:
        raise ConfigError(
            f"the relative width {relative_width(wanted.exponent):.4g} at step {wanted.step} cannot be put together "
            f"from {count} snapshots: the error of its profile would be {100 * error:.0f} %, of which "
            f"{100 * MOST_ERROR:.0f} % are allowed. Take snapshots more often, track two widths, or ask for a width "
            "nearer to those that were tracked."
        )
    return factors.tolist()


def _error(wanted: Profile, factors: Tensor, dots: Tensor, wishes: Tensor) -> float:
    """Norm of the difference between a profile and the sum of others, relative to its own."""
    own = wanted.dot(wanted)
    squared = own - 2 * factors @ wishes + factors @ dots @ factors
    return math.sqrt(max(0.0, float(squared) / own))
