"""The shift of time with the resolution, by the settings of a pipeline's scheduler."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


# Settings of dynamic shifting -> what pipelines take where a scheduler's configuration lacks one.
DYNAMIC = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}


def stage_shift(config: Any, tokens: int, full_tokens: float) -> float:
    """Shift s of time at a stage's resolution: sigma becomes s * sigma / (1 + (s - 1) * sigma).

    With dynamic shifting (Flux) s follows the number of image tokens as it does in the pipeline: mu is linear in it,
    s = exp(mu). Otherwise (SD3) the scheduler's own shift belongs to the full resolution, and SD3's rule for another
    one (arXiv 2403.03206, section 5.3.2) multiplies it by sqrt(tokens / full_tokens): fewer tokens need less noise to
    lose the same signal.

    Args:
        config: Of the pipeline's scheduler.
        tokens: Image tokens at the stage's resolution.
        full_tokens: Image tokens at the run's resolution.
    """
    if not config.get("use_dynamic_shifting"):
        return own_shift(config) * math.sqrt(tokens / full_tokens)
    return dynamic_shift(config, linear_mu(config, tokens))


def own_shift(config: Any) -> float:
    """The scheduler's own shift: samplers that can do more than flow matching have another name for it."""
    return config["shift"] if "shift" in config else config["flow_shift"]


def linear_mu(config: Any, tokens: int) -> float:
    """Flux's mu for a number of image tokens: on the line through the two points that the scheduler names."""
    few, many, low, high = (config.get(name, default) for name, default in DYNAMIC.items())
    slope = (high - low) / (many - few)
    return tokens * slope + (low - slope * few)


def dynamic_shift(config: Any, mu: float) -> float:
    """The shift of a scheduler that is given mu."""
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)


def shift_time(sigmas: Tensor, shift: float) -> Tensor:
    """(N,) times in [0, 1], 1 being noise, moved towards it by a shift above 1."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)
