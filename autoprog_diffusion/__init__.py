"""Progressive fine-tuning of diffusion models: growth schedules and stage embeddings for any Diffusers loop.

Importing this package needs torch only; the model families are registered by class name.
"""

from . import adapters, search
from .growth import GrowthConfig, GrowthError, GrowthPlan, GrowthScheduler, Stage


__version__ = "0.1.0"

__all__ = [
    "GrowthConfig",
    "GrowthError",
    "GrowthPlan",
    "GrowthScheduler",
    "Stage",
    "__version__",
    "adapters",
    "search",
]
