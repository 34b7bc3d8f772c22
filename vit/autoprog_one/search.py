"""Choosing the shape of a stage: the fixed grid, a random draw, training-free scores, or a supernet."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.growth.plan import GrowthPlan
from autoprog_diffusion.growth.units import Layout
from autoprog_diffusion.search import objective
from autoprog_diffusion.search.consensus import agree, decide_once, gather

from ..ema import WeightAverage
from .config import ViTGrowthConfig
from .elastic import ElasticModel
from .one_shot import LossFn, choose, evaluating, mean_loss, step_flops, step_seconds
from .operators import growth_map
from .shapes import Grid, Shape, list_candidates, search_length
from .supernet import Supernet
from .zero_shot import SubNetworkScores


class FlopTable:
    """FLOPs of a step at one resolution, for any depth.

    Blocks of a group have one shape, so the count is linear in its depth: two shallow networks give it exactly, where
    counting is slow (torch's counter sees every operation).

    Args:
        elastic: The model.
        count: FLOPs of a step of what it shows.
    """

    def __init__(self, elastic: ElasticModel, count: Callable[[], float]) -> None:
        def counted(depths: Sequence[int]) -> float:
            elastic.show(tuple(tuple(range(depth)) for depth in depths))
            return count()

        ones = [1] * len(elastic.depths)
        self._base = counted(ones)
        self._block = [
            counted([*ones[:g], 2, *ones[g + 1 :]]) - self._base if depth > 1 else 0.0
            for g, depth in enumerate(elastic.depths)
        ]

    def of(self, depths: Sequence[int]) -> float:
        """FLOPs with `depths` blocks in the groups."""
        return self._base + sum((depth - 1) * flops for depth, flops in zip(depths, self._block, strict=True))


class StageChoice:
    """The search of one run.

    Args:
        config: Which search.
        grid: Shapes of the run.
        elastic: The model, in the depth of the current stage.
        layout: Its units, for the scores of the core.
        resize: (images (N, C, H, W), pixels) -> images.
        held_out: Batches (images, targets) at full resolution to score on.
        loss_fn: `loss_fn(model, images, targets) -> loss`.

    Raises:
        ConfigError: A search that scores has nothing to score on.
    """

    def __init__(
        self,
        config: ViTGrowthConfig,
        grid: Grid,
        elastic: ElasticModel,
        layout: Layout,
        resize: Callable[[Tensor, int], Tensor],
        held_out: Sequence[tuple[Tensor, Tensor]] | None,
        loss_fn: LossFn | None,
    ) -> None:
        self._config, self._grid, self._elastic, self._layout = config, grid, elastic, layout
        self._resize, self._batches = resize, list(held_out or ())
        self.supernet: Supernet | None = None
        self._seconds = 0.0
        self._flops: dict[int, FlopTable] = {}
        needed = {"one_shot": 1, "zero_shot": 2}.get(config.search, 0)
        if len(self._batches) < needed or (needed and loss_fn is None):
            raise ConfigError(
                f"search={config.search!r} scores candidates on at least {needed} batches, {len(self._batches)} were "
                "given: pass growth.prepare held_out=[(images, targets), ...], training batches whose augmentation is "
                "fixed, and loss_fn=lambda model, images, targets: ..."
            )
        self._loss_fn: Any = loss_fn  # there, where it is needed

    def candidates(self, stage: int, current: Shape | None) -> list[Shape]:
        """Shapes the stage may take; one where it is not searched. `current` is None in stage 0."""
        found = list_candidates(self._grid, stage, current)
        if self._config.search == "fixed":
            return [self._grid.shape(stage)]
        if self._config.search == "random":
            return [random.Random(1000 * self._config.seed + stage).choice(found)]
        return found

    def open(self, stage: int, plan: GrowthPlan, current: Shape | None) -> Supernet:
        """The supernet of a stage's candidates; the model has the depth of the largest."""
        candidates = self.candidates(stage, current)
        old = self._grid.splits[candidates[0].depth if current is None else current.depth]
        new = self._grid.splits[candidates[-1].depth]
        maps = [growth_map(self._config.operator, *depths) for depths in zip(old, new)]
        length = search_length(self._config, plan, stage) if self._config.search == "one_shot" else 0
        start, config = plan.stages[stage].start, self._config
        self.supernet = Supernet(start, length, candidates, maps, self._grid, config.evaluations, config.seed)
        self._seconds, self._flops = 0.0, {}
        return self.supernet

    def evaluate(self, net: Supernet, average: WeightAverage) -> None:
        """Note the loss of every candidate, with averaged weights, as the mean over ranks.

        Raises:
            SearchError: On every rank, where it failed on one.
        """
        started = time.perf_counter()

        def losses() -> list[float]:
            with average.swapped_in(), evaluating(self._elastic.model):
                return [self._loss(net, shape) for shape in net.candidates]

        net.losses.append([sum(column) / len(column) for column in zip(*gather(losses))])
        self._seconds += time.perf_counter() - started

    def decide(self, net: Supernet, stage: int) -> tuple[Shape, dict[str, Any]]:
        """The candidate to go on with, the same on every rank, and a record of the decision in plain JSON types.

        Raises:
            SearchError: On every rank, where scoring failed on one.
        """
        started = time.perf_counter()
        index, details = (self._one_shot if self._config.search == "one_shot" else self._zero_shot)(net)
        chosen = net.candidates[index]
        record = {
            "stage": stage,
            "step": net.start + net.length,
            "search": self._config.search,
            "cost_unit": "FLOPs" if self._config.search_cost == "flops" else "seconds",
            "choice": {"depth": chosen.depth, "resolution": chosen.resolution},
            **details,
            "seconds": self._seconds + time.perf_counter() - started,
        }
        self.supernet = None
        return chosen, record

    def state_dict(self) -> dict[str, Any] | None:
        """What a supernet phase has seen so far; None outside of one."""
        return None if self.supernet is None else {"losses": self.supernet.losses, "seconds": self._seconds}

    def load_state_dict(self, state: dict[str, Any] | None, stage: int, plan: GrowthPlan) -> None:
        """Continue what `state_dict` was taken in."""
        self.supernet = None
        if state is not None:
            before = plan.stages[stage - 1] if stage else None
            net = self.open(stage, plan, before and Shape(len(before.blocks), int(before.resolution)))
            net.losses, self._seconds = state["losses"], state["seconds"]

    def _one_shot(self, net: Supernet) -> tuple[int, dict[str, Any]]:
        losses = [sum(column) / len(column) for column in zip(*net.losses)]
        rows = gather(lambda: [self._cost(net, shape) for shape in net.candidates])
        costs = [sum(column) / len(column) for column in zip(*rows)]
        index, w, verdicts = decide_once(lambda: choose(net.candidates, losses, costs))
        return index, {"w": w, "candidates": [v.to_dict() for v in verdicts], "evaluations": net.losses}

    def _zero_shot(self, net: Supernet) -> tuple[int, dict[str, Any]]:
        parts = (self._elastic.model, self._layout, self._loss_fn, self._batches, self._resize)

        def score() -> list[objective.Score]:
            scores = SubNetworkScores(*parts, self._grid.full.resolution)
            found = []
            for shape in net.candidates:
                cost = self._cost(net, shape)
                self._elastic.show(net.positions(shape.depth))
                found.append(scores.score(self._elastic.running, shape.resolution, cost))
            return found

        goal = self._config.search_objective
        index, scores = agree(score, lambda found: objective.choose(goal, found, self._config.seed))
        return index, {"objective": goal, "candidates": [score.to_dict() for score in scores]}

    def _loss(self, net: Supernet, shape: Shape) -> float:
        self._elastic.show(net.positions(shape.depth))
        return mean_loss(
            self._elastic.model, self._loss_fn, self._batches, lambda images: self._resize(images, shape.resolution)
        )

    def _cost(self, net: Supernet, shape: Shape) -> float:
        images, targets = self._batches[0]
        parts = (self._elastic.model, self._loss_fn, self._resize(images, shape.resolution), targets)
        if self._config.search_cost == "measured":
            self._elastic.show(net.positions(shape.depth))
            return step_seconds(*parts)
        if shape.resolution not in self._flops:
            self._flops[shape.resolution] = FlopTable(self._elastic, lambda: step_flops(*parts))
        return self._flops[shape.resolution].of(self._grid.splits[shape.depth])
