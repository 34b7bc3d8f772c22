"""The error of a report."""

from autoprog_diffusion.growth.errors import GrowthError


class ReportError(GrowthError):
    """A folder holds no run, or a file of a run cannot be read."""
