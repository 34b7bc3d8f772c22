"""Plans a training run before it starts: memory, FLOPs and time of every stage, without a GPU or weights.

from autoprog_diffusion.planner import plan

planned = plan("sdxl", gpu="4090")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .errors import PlannerError
    from .planning import Planned, StagePlan, plan

__all__ = ["Planned", "PlannerError", "StagePlan", "plan"]


def __getattr__(name: str) -> Any:
    """A public name; it is imported when it is asked for, since that takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import errors, planning

    return getattr(errors if name == "PlannerError" else planning, name)
