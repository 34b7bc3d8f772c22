"""The error of evaluations."""

from __future__ import annotations

from autoprog_diffusion.growth.errors import GrowthError


class EvaluationError(GrowthError):
    """Held-out images, or the loss on them, cannot be used."""
