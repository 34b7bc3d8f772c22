"""`Growth`: the members that a training loop may use of whatever makes its model grow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor, nn

from .plan import GrowthPlan
from .state import State
from .values import JSON, Resolution


class Reported(Protocol):
    """The settings of a growth object, or a stage that it entered, for the report of a run."""

    def to_dict(self) -> JSON:
        """The settings, or the record, as plain JSON types."""
        ...


class Growth(Protocol):
    """Grows or freezes a model stage by stage inside a training loop.

    `GrowthScheduler`, `vit.ViTGrowth` and As-ViT's re-tokenization satisfy it. `prepare`, which takes the prepared
    model, is not part of it: every method needs other arguments there. A loop calls `prepare` first, `resize` for
    every batch, `step` after every optimizer step, and `fold` at the end.
    """

    @property
    def config(self) -> Reported:
        """The settings."""
        ...

    @property
    def plan(self) -> GrowthPlan:
        """The plan that is followed, as decided so far; raises `OrderError` before `prepare`."""
        ...

    @property
    def stage(self) -> int:
        """Index of the current stage."""
        ...

    @property
    def resolution(self) -> Resolution:
        """Resolution of the next batch: a fraction of the data's (float) or pixels (int)."""
        ...

    @property
    def trainable_fraction(self) -> float:
        """Share of the model's parameters that train now, in [0, 1]."""
        ...

    @property
    def searching(self) -> bool:
        """Whether the next step trains a candidate of a search rather than the plan's stage."""
        ...

    @property
    def decisions(self) -> list[JSON]:
        """The decisions of a search so far: per stage the candidates with their scores, and the choice."""
        ...

    @property
    def history(self) -> Sequence[Reported]:
        """The stages entered so far."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters that the optimizer must hold."""
        ...

    def step(self) -> bool:
        """Count one optimizer step; returns whether the loop must get ready for another stage or network."""
        ...

    def resize(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images -> the same at the current resolution."""
        ...

    def fold(self, model: nn.Module) -> None:
        """Leave a plain model: no hook, no override, no stage embedding. Called once, after training."""
        ...

    def state_dict(self) -> State:
        """The state that a checkpoint keeps."""
        ...

    def load_state_dict(self, state_dict: State) -> None:
        """Continue where `state_dict` was taken; weights and optimizer state are loaded by the host."""
        ...
