"""Errors of the library: all of the `ValueError` family, all naming the value, what is allowed and the fix."""


class GrowthError(ValueError):
    """Base class of every error this library raises on purpose."""


class ConfigError(GrowthError):
    """A `GrowthConfig` field holds a value that is not allowed."""


class PlanError(GrowthError):
    """A growth plan's stages do not follow one another, or do not fit the run or the model."""


class UnitError(GrowthError):
    """The blocks of a model could not be named: unknown class, no match, overlap or shared parameters."""


class OrderError(GrowthError):
    """A call came at the wrong place in the training script, or with the wrong object."""


class StateError(GrowthError):
    """A saved state belongs to another plan, model or version."""


class SearchError(GrowthError):
    """A schedule search cannot be carried out, or failed on some rank."""


class SyncError(GrowthError):
    """Ranks that must be bit-identical are not."""


class GrowthWarning(UserWarning):
    """Something in a training loop is probably not meant as it is written; training goes on."""
