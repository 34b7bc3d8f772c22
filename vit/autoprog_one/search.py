"""Choosing the shape of a stage: the fixed grid, a random draw, training-free scores, or a supernet."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from autoprog_diffusion.growth.errors import ConfigError, StateError
from autoprog_diffusion.growth.plan import GrowthPlan
from autoprog_diffusion.growth.units import Layout
from autoprog_diffusion.growth.values import JSON
from autoprog_diffusion.search import objective
from autoprog_diffusion.search.consensus import agree, decide_once, gather

from ..ema import WeightAverage
from .config import ViTGrowthConfig
from .elastic import ElasticModel
from .one_shot import Batches, choose, evaluating, mean_loss, step_flops, step_seconds
from .operators import growth_map
from .shapes import Grid, Shape, list_candidates, search_length, shape_of
from .supernet import Supernet
from .zero_shot import Resize, SubNetworkScores


BATCHES_NEEDED = {"one_shot": 1, "zero_shot": 2}  # search -> the fewest batches it scores on


@dataclass
class ShapeSearch:
    """The search of one run.

    Attributes:
        config: Names the search.
        grid: Shapes of the run.
        elastic: The model, in the depth of the current stage.
        layout: Its units, for the scores of the core.
        resize: (images (N, C, H, W), pixels) -> images.
        batches: Batches (images, targets) at full resolution to score on.
        loss_fn: `loss_fn(model, images, targets) -> loss`; None where nothing is scored.
        supernet: The candidates of the stage that is searched now.

    Raises:
        ConfigError: A search that scores has nothing to score on.
    """

    config: ViTGrowthConfig
    grid: Grid
    elastic: ElasticModel
    layout: Layout
    resize: Resize
    batches: Batches
    loss_fn: Any
    supernet: Supernet | None = field(default=None, init=False)
    _seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        needed = BATCHES_NEEDED.get(self.config.search, 0)
        too_few = len(self.batches) < needed
        if too_few or (needed and self.loss_fn is None):
            raise ConfigError(
                f"search={self.config.search!r} scores candidates on at least {needed} batches, {len(self.batches)} "
                "were given: pass growth.prepare held_out=[(images, targets), ...], training batches whose "
                "augmentation is fixed, and loss_fn=lambda model, images, targets: ..."
            )

    def candidates(self, stage: int, plan: GrowthPlan, current: Shape | None) -> list[Shape]:
        """Shapes the stage may take; one where it is not searched.

        Args:
            stage: Index of the stage.
            plan: The stages, as decided so far.
            current: The shape that trained before it; None in stage 0.
        """
        if self.config.search == "fixed" or stage == len(plan.stages) - 1:
            return [shape_of(plan.stages[stage])]
        found = list_candidates(self.grid, stage, current)
        if self.config.search == "random":
            rng = random.Random(1000 * self.config.seed + stage)
            return [rng.choice(found)]
        return found

    def open(self, stage: int, plan: GrowthPlan, current: Shape | None, *, length: int | None = None) -> Supernet:
        """The supernet of a stage's candidates; the model has the depth of the largest.

        Args:
            stage: Index of the stage.
            plan: The stages, as decided so far.
            current: The shape that trained before it; None in stage 0.
            length: Optimizer steps of the supernet phase, where it has begun; None for the configuration's.

        Raises:
            PlanError: The supernet phase would fill the stage.
        """
        config = self.config
        candidates = self.candidates(stage, plan, current)
        smallest = current or candidates[0]
        largest = candidates[-1]
        maps = []
        for old, new in zip(self.grid.splits[smallest.depth], self.grid.splits[largest.depth]):
            maps.append(growth_map(config.operator, old, new))
        if length is None:
            length = search_length(config, plan, stage) if config.search == "one_shot" else 0
        self.supernet = Supernet(
            start=plan.stages[stage].start,
            length=length,
            candidates=candidates,
            maps=maps,
            grid=self.grid,
            evaluations=config.evaluations,
            seed=config.seed,
        )
        self._seconds = 0.0
        return self.supernet

    def evaluate(self, net: Supernet, average: WeightAverage) -> None:
        """Note the loss of every candidate, with averaged weights, as the mean over ranks.

        Args:
            net: The supernet; a row is added to its losses.
            average: Of the model.

        Raises:
            SearchError: On every rank, where it failed on one.
        """
        started = time.perf_counter()

        def losses() -> list[float]:
            with average.swapped_in(), evaluating(self.elastic.model):
                return [self._loss(net, shape) for shape in net.candidates]

        of_ranks = gather(losses)
        net.losses.append(_column_means(of_ranks))
        self._seconds += time.perf_counter() - started

    def decide(self, net: Supernet, stage: int) -> tuple[Shape, JSON]:
        """The candidate to go on with, the same on every rank, and a record of the decision in plain JSON types.

        Args:
            net: The supernet at the end of its phase.
            stage: Index of the stage.

        Raises:
            SearchError: On every rank, where scoring failed on one.
        """
        started = time.perf_counter()
        if self.config.search == "one_shot":
            index, details = self._one_shot(net)
        else:
            index, details = self._zero_shot(net)
        chosen = net.candidates[index]
        cost_unit = "FLOPs" if self.config.search_cost == "flops" else "seconds"
        seconds = time.perf_counter() - started
        record = {
            "stage": stage,
            "step": net.start + net.length,
            "search": self.config.search,
            "cost_unit": cost_unit,
            "choice": asdict(chosen),
            **details,
            "seconds": self._seconds + seconds,
        }
        self.supernet = None
        return chosen, record

    def state_dict(self) -> JSON | None:
        """Losses and seconds of the supernet phase so far; None outside of one."""
        if self.supernet is None:
            return None
        return {"losses": self.supernet.losses, "seconds": self._seconds, "length": self.supernet.length}

    def load_state_dict(self, state: JSON | None, stage: int, plan: GrowthPlan) -> None:
        """Continue the phase that `state_dict` was taken in.

        Args:
            state: None outside of a phase.
            stage: Index of the stage.
            plan: The stages, as decided so far.

        Raises:
            StateError: The run was made so short that the phase no longer fits its stage.
        """
        self.supernet = None
        if state is None:
            return
        current = None
        if stage:
            current = shape_of(plan.stages[stage - 1])
        # The phase keeps the length it began with, also where the stage got another one.
        net = self.open(stage, plan, current, length=state.get("length"))
        after = [later.start for later in plan.stages[stage + 1 :]]
        if not after or net.start + net.length >= after[0]:
            raise StateError(
                f"the search of stage {stage} goes on to step {net.start + net.length}, for which a run of "
                f"{plan.num_training_steps} steps has no room: resume with more steps."
            )
        net.losses = state["losses"]
        self._seconds = state["seconds"]

    def _one_shot(self, net: Supernet) -> tuple[int, JSON]:
        """Index of the candidate furthest below the trend of loss over cost, and the decision's details."""

        def own_costs() -> list[float]:
            return [self._cost(net, shape) for shape in net.candidates]

        losses = _column_means(net.losses)
        costs = _column_means(gather(own_costs))
        index, exponent, verdicts = decide_once(lambda: choose(net.candidates, losses, costs))
        rows = [verdict.to_dict() for verdict in verdicts]
        return index, {"w": exponent, "candidates": rows, "evaluations": net.losses}

    def _zero_shot(self, net: Supernet) -> tuple[int, JSON]:
        """Index of the candidate that the objective prefers by training-free scores, and the decision's details."""
        goal = self.config.search_objective

        def decide(scores: list[objective.Score]) -> objective.Decision:
            return objective.choose(goal, scores, self.config.seed)

        index, scores = agree(lambda: self._scores(net), decide)
        rows = [score.to_dict() for score in scores]
        return index, {"objective": goal, "candidates": rows}

    def _scores(self, net: Supernet) -> list[objective.Score]:
        """Training-free scores of every candidate, on this rank."""
        scores = SubNetworkScores(
            model=self.elastic.model,
            layout=self.layout,
            loss_fn=self.loss_fn,
            batches=self.batches,
            resize=self.resize,
            full=self.grid.full.resolution,
        )
        found = []
        for shape in net.candidates:
            cost = self._cost(net, shape)
            self.elastic.show(net.positions(shape.depth))
            found.append(scores.score(self.elastic.running, shape.resolution, cost))
        return found

    def _loss(self, net: Supernet, shape: Shape) -> float:
        """Loss of one candidate on this rank's batches, at its resolution."""

        def resize(images: Tensor) -> Tensor:
            return self.resize(images, shape.resolution)

        self.elastic.show(net.positions(shape.depth))
        return mean_loss(
            self.elastic.model,
            loss_fn=self.loss_fn,
            batches=self.batches,
            resize=resize,
        )

    def _cost(self, net: Supernet, shape: Shape) -> float:
        """FLOPs of a training step of an image, or seconds of a batch."""
        images, targets = self.batches[0]
        resized = self.resize(images, shape.resolution)
        measure = step_flops
        if self.config.search_cost == "measured":
            measure = step_seconds
        self.elastic.show(net.positions(shape.depth))
        return measure(self.elastic.model, self.loss_fn, resized, targets)


def _column_means(rows: Iterable[Sequence[float]]) -> list[float]:
    """Mean of every candidate over rows (evaluations or ranks) of one value per candidate."""
    means = []
    for column in zip(*rows):
        means.append(sum(column) / len(column))
    return means
