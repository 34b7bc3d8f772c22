"""The growth core: plan, units, scheduler. Knows `torch.nn.Module` and nothing else."""

from .adapter import Adapter, find_adapter, register_adapter, supported_classes
from .config import GrowthConfig
from .errors import ConfigError, GrowthError, OrderError, PlanError, StateError, SyncError, UnitError
from .fixed import fixed_plan, select_blocks
from .plan import GrowthPlan, Stage
from .scheduler import GrowthScheduler, StageRecord
from .units import Layout, Unit


__all__ = [
    "Adapter",
    "ConfigError",
    "GrowthConfig",
    "GrowthError",
    "GrowthPlan",
    "GrowthScheduler",
    "Layout",
    "OrderError",
    "PlanError",
    "Stage",
    "StageRecord",
    "StateError",
    "SyncError",
    "Unit",
    "UnitError",
    "find_adapter",
    "fixed_plan",
    "register_adapter",
    "select_blocks",
    "supported_classes",
]
