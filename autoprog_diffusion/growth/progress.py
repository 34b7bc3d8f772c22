"""`Progress`: where a run of a `GrowthScheduler` stands, to be read."""

from __future__ import annotations

from torch import nn

from .adapter import StageEmbeddingLike
from .errors import OrderError
from .plan import GrowthPlan
from .search_session import SearchSession
from .state import describe
from .units import count_trainable
from .values import JSON, Resolution


class Progress:
    """The plan, the stage that trains now, and what a search decided so far."""

    _model: nn.Module
    _plan: GrowthPlan | None
    _step: int
    _embedding: StageEmbeddingLike | None
    _search: SearchSession

    @property
    def plan(self) -> GrowthPlan:
        """The plan that is followed.

        Raises:
            OrderError: `prepare` has not been called.
        """
        if self._plan is None:
            raise OrderError("call growth.prepare(model, num_training_steps=...) first, after accelerator.prepare.")
        return self._plan

    @property
    def stage(self) -> int:
        """Index of the current stage."""
        return self.plan.stage_at(self._step)

    @property
    def resolution(self) -> Resolution:
        """Resolution of the current stage: fraction (float) or pixels (int)."""
        return self.plan.stages[self.stage].resolution

    @property
    def trainable_fraction(self) -> float:
        """Share of the model's parameters that train now, in [0, 1]."""
        trainable, total = count_trainable(self._model)
        return trainable / total

    @property
    def stage_embedding(self) -> StageEmbeddingLike | None:
        """The stage embedding that trains beside the model, if there is one."""
        return self._embedding

    @property
    def searching(self) -> bool:
        """Whether the next step trains a candidate of a search: never, since candidates are only probed."""
        return False

    @property
    def decisions(self) -> list[JSON]:
        """The decisions of a search so far: per stage the candidates with their scores, and the choice."""
        return self._search.decisions

    def print_trainable_parameters(self) -> None:
        """Print how much of the model trains, in PEFT's words."""
        print(describe(self.plan, self.stage, *count_trainable(self._model)))
