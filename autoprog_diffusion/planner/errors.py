"""Errors of the planner."""

from __future__ import annotations

from autoprog_diffusion.growth.errors import GrowthError


class PlannerError(GrowthError):
    """A run cannot be planned: unknown model or GPU, a config that is no denoiser, or an impossible setting."""
