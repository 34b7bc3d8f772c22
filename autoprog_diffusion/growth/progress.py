"""`Progress`: where a run of a `GrowthScheduler` stands, to be read, and what follows from it alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from .accumulation import StageAccumulation
from .adapter import StageEmbeddingLike
from .backward_step import BackwardStep
from .config import GrowthConfig
from .errors import OrderError
from .plan import GrowthPlan
from .resize import resize_images
from .search_session import SearchSession
from .state import describe
from .storage.model import FrozenStorage
from .units import count_trainable
from .values import JSON, Resolution


class Progress:
    """The plan, the stage that trains now, and what a search decided so far."""

    config: GrowthConfig
    _model: nn.Module
    _plan: GrowthPlan | None
    _step: int
    _accumulation: StageAccumulation
    _embedding: StageEmbeddingLike | None
    _search: SearchSession
    _storage: FrozenStorage
    _backward_step: BackwardStep

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
    def steps(self) -> int:
        """Optimizer steps done, as counted by `step`."""
        return self._step

    @property
    def resolution(self) -> Resolution:
        """Resolution of the current stage: fraction (float) or pixels (int)."""
        return self.plan.stages[self.stage].resolution

    @property
    def _averages_matter(self) -> bool:
        """Whether an average could take something else for a frozen weight than its own average."""
        return self.plan.freezes or self.config.frozen_dtype is not None

    @property
    def accumulation(self) -> int:
        """Forward passes of an optimizer step of the current stage; a prepared accelerator has this number already."""
        return self.plan.stages[self.stage].passes(self._accumulation.own)

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

    def exact(self, parameter: nn.Parameter) -> Tensor:
        """The value of a parameter of the model, also where `frozen_dtype` holds it small now."""
        return self._storage.exact(parameter)

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Inside a `with` block no backward pass trains: for probes that replay the calls of a loop."""
        with self._backward_step.paused():
            yield

    def print_trainable_parameters(self) -> None:
        """Print how much of the model trains, in PEFT's words."""
        print(describe(self.plan, self.stage, *count_trainable(self._model)))

    def resize(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images -> the same at the current stage's resolution, by area averaging.

        Raises:
            ConfigError: The resolution does not divide by `config.resolution_multiple`.
        """
        return resize_images(images, self.resolution, self.config.resolution_multiple)

    def save_stage_embedding(self, folder: str | Path) -> None:
        """Write `stage_embedding.safetensors` beside a checkpoint; `adapters.use_stage_embedding` samples with it.

        For what `fold` cannot express: LoRA, whose checkpoint holds no bias of the base model, and the null row of
        `stage_dropout`. Every process may call it; the first one writes.

        Raises:
            OrderError: The run has no stage embedding.
        """
        if self._embedding is None:
            raise OrderError("this run has no stage embedding to save: set GrowthConfig(stage_embedding=True).")
        self._embedding.save(folder)
