"""Adaptive regularisation of AutoProg (CVPR 2022): weak in small early stages, full in the last one."""

from __future__ import annotations

from dataclasses import dataclass

from .augment_settings import AugmentSettings
from .randaugment import parse_randaugment


@dataclass(frozen=True)
class Strength:
    """How much one stage is regularised.

    Attributes:
        magnitude: Of RandAugment, 0 to 10.
        drop_path: Rate of stochastic depth of the last block.
        reprob: Probability of erasing.
    """

    magnitude: float
    drop_path: float
    reprob: float


def ramp(maximum: float, scale: float, stage: int, num_stages: int) -> float:
    """Value of a stage between `scale * maximum` in the first and `maximum` in the last, linear, never below 0.

    Example:
        >>> [round(ramp(0.1, 0.0, stage, 4), 3) for stage in range(4)]
        [0.0, 0.033, 0.067, 0.1]
    """
    share = stage / (num_stages - 1) if num_stages > 1 else 1.0
    return max(0.0, maximum * (scale + (1 - scale) * share))


def strengths(settings: AugmentSettings, drop_path: float, num_stages: int) -> list[Strength]:
    """One strength per stage; a search runs at the last one's, as in the released code.

    RandAugment's magnitude is a whole number, rounded down: 4, 6, 7, 9 of 9.

    Args:
        settings: The last stage's values and the first one's fractions of them.
        drop_path: The last stage's rate of stochastic depth.
        num_stages: Number of stages.
    """
    magnitude = parse_randaugment(settings.aa).magnitude if settings.aa else 0.0
    return [
        Strength(
            magnitude=float(int(ramp(magnitude, settings.aa_scale, stage, num_stages) + 1e-9)),
            drop_path=ramp(drop_path, settings.drop_path_scale, stage, num_stages),
            reprob=ramp(settings.reprob, settings.reprob_scale, stage, num_stages),
        )
        for stage in range(num_stages)
    ]
