"""The error of everything that reads data."""

from autoprog_diffusion.growth.errors import GrowthError


class DataError(GrowthError):
    """The data cannot be used."""
