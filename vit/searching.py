"""Choosing the shape of a stage: the fixed grid, a random draw, training-free scores, or a supernet."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.growth.plan import GrowthPlan
from autoprog_diffusion.growth.units import Layout

from .config import ViTGrowthConfig
from .elastic import ElasticModel
from .one_shot import LossFn
from .planning import Grid, Shape, list_candidates
from .supernet import Supernet


class StageChoice:
    """The search of one run.

    Args:
        config: Which search.
        grid: Shapes of the run.
        model: The bare model.
        layout: Its units, for the scores of the core.
        held_out: Batches (images (N, C, H, W), targets) to score on.
        loss_fn: `loss_fn(model, images, targets) -> loss`.

    Raises:
        ConfigError: A search that scores has nothing to score on.
    """

    def __init__(
        self,
        config: ViTGrowthConfig,
        grid: Grid,
        model: nn.Module,
        layout: Layout,
        held_out: Sequence[tuple[Tensor, Tensor]] | None,
        loss_fn: LossFn | None,
    ) -> None:
        if config.search in ("one_shot", "zero_shot") and (not held_out or loss_fn is None):
            raise ConfigError(
                f"search={config.search!r} scores candidates: give growth.prepare held_out=[(images, targets), ...], "
                "training batches whose augmentation is fixed, and loss_fn(model, images, targets)."
            )
        self._config, self._grid = config, grid
        self.supernet: Supernet | None = None

    def candidates(self, stage: int, current: Shape | None) -> list[Shape]:
        """Shapes the stage may take; one where the configuration does not search it."""
        found = list_candidates(self._grid, stage, current)
        if self._config.search == "fixed":
            return [self._grid.shape(stage)]
        if self._config.search == "random":
            return [random.Random(1000 * self._config.seed + stage).choice(found)]
        return found

    def state_dict(self) -> dict[str, Any] | None:
        """The supernet phase, if there is one."""
        return None

    def load_state_dict(self, state: dict[str, Any] | None, plan: GrowthPlan, elastic: ElasticModel) -> None:
        """Continue a supernet phase."""
