"""Progressive fine-tuning of diffusion models: growth schedules and stage embeddings for any Diffusers loop.

Importing this package needs torch only; the model families are registered by class name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import adapters, search
from .growth import GrowthConfig, GrowthPlan, GrowthScheduler, Stage
from .growth.errors import (
    ConfigError,
    GrowthError,
    GrowthWarning,
    OrderError,
    PlanError,
    SearchError,
    StateError,
    SyncError,
    UnitError,
)


if TYPE_CHECKING:
    from .data.errors import DataError
    from .evaluation.errors import EvaluationError
    from .evaluation.held_out import HeldOut
    from .files import DiskError
    from .growth.power_average import PowerAverage
    from .patching.errors import PatchError
    from .planner.errors import PlannerError
    from .planner.planning import plan
    from .reporting.errors import ReportError
    from .tasks.dit_labels import LabelError
    from .training.checkpoints import TrainingError
    from .training.output import OutputError
    from .vit.asvit.genotype import GenotypeError  # pyright: ignore[reportMissingImports]
    from .vit.asvit.scaling import BudgetError  # pyright: ignore[reportMissingImports]
    from .vit.models import ModelError  # pyright: ignore[reportMissingImports]
    from .vit.retokenize import RetokenError  # pyright: ignore[reportMissingImports]

__version__ = "0.2.0"

__all__ = [
    "BudgetError",
    "ConfigError",
    "DataError",
    "DiskError",
    "EvaluationError",
    "GenotypeError",
    "GrowthConfig",
    "GrowthError",
    "GrowthPlan",
    "GrowthScheduler",
    "GrowthWarning",
    "HeldOut",
    "LabelError",
    "ModelError",
    "OrderError",
    "OutputError",
    "PatchError",
    "PlanError",
    "PlannerError",
    "PowerAverage",
    "ReportError",
    "RetokenError",
    "SearchError",
    "Stage",
    "StateError",
    "SyncError",
    "TrainingError",
    "UnitError",
    "__version__",
    "adapters",
    "plan",
    "search",
]

# What needs more than torch, or is seldom needed: imported when it is asked for.
_LAZY = {
    "BudgetError": "vit.asvit.scaling",
    "DataError": "data.errors",
    "DiskError": "files",
    "EvaluationError": "evaluation.errors",
    "GenotypeError": "vit.asvit.genotype",
    "HeldOut": "evaluation.held_out",
    "LabelError": "tasks.dit_labels",
    "ModelError": "vit.models",
    "OutputError": "training.output",
    "PatchError": "patching.errors",
    "PlannerError": "planner.errors",
    "PowerAverage": "growth.power_average",
    "ReportError": "reporting.errors",
    "RetokenError": "vit.retokenize",
    "TrainingError": "training.checkpoints",
    "plan": "planner.planning",
}


def __getattr__(name: str) -> Any:
    """A name of a part that was not imported yet."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_LAZY[name]}", __name__)
    return getattr(module, name)
