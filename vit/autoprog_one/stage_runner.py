"""The course of one run: which shape trains now, and what happens between two optimizer steps."""

from __future__ import annotations

import logging
from typing import Any

import torch

from autoprog_diffusion.growth.plan import GrowthPlan
from autoprog_diffusion.growth.state import fingerprint
from autoprog_diffusion.growth.units import Layout, count_trainable

from ..ema import WeightAverage
from ..retokenize import Retokenizer
from .config import ViTGrowthConfig
from .elastic import ElasticModel
from .ranks import RankSwitch
from .search import StageChoice
from .shapes import Grid, Shape, with_shape
from .state import STATE_VERSION, ShapeRecord, check_state
from .supernet import Supernet


logger = logging.getLogger(__name__)


class Course:
    """Leads a model through its stages, searched or not.

    Args:
        config: How it grows.
        grid: The shapes it can go through.
        plan: Its stages.
        layout: The model's units.
        elastic: The model.
        average: Of its weights.
        optimizers: Whose state grows too.
        choice: The search.
        ranks: The other processes.
        tokens: What changes the stride of the first projection, if the plan does.
    """

    def __init__(
        self,
        config: ViTGrowthConfig,
        grid: Grid,
        plan: GrowthPlan,
        layout: Layout,
        elastic: ElasticModel,
        average: WeightAverage,
        optimizers: list[torch.optim.Optimizer],
        choice: StageChoice,
        ranks: RankSwitch,
        tokens: Retokenizer | None = None,
    ) -> None:
        self._config, self._grid, self._layout = config, grid, layout
        self._elastic, self.average, self._optimizers = elastic, average, optimizers
        self._choice, self._ranks, self._tokens = choice, ranks, tokens
        self.plan, self.step, self.shape = plan, 0, grid.shape(0)
        self.history: list[ShapeRecord] = []
        self.decisions: list[dict[str, Any]] = []

    @property
    def stage(self) -> int:
        """Index of the current stage."""
        return self.plan.stage_at(self.step)

    @property
    def searching(self) -> bool:
        """Whether the next step trains a sub-network drawn from a supernet."""
        return self._choice.supernet is not None

    def advance(self) -> bool:
        """Count one optimizer step; True where a new shape was entered.

        Raises:
            SyncError: A new shape is entered, or training ends, and the ranks' weights differ.
            SearchError: Candidates could not be scored, on any rank.
        """
        before = self.stage
        self.average.update()
        self.step += 1
        if self.step == self.plan.num_training_steps:
            self.check_ranks("at the end of training")
        if self.stage != before:
            self.enter(self.stage)
            return True
        return self._search()

    def enter(self, stage: int) -> None:
        """Begin a stage: with its shape where that is known, with a supernet of the candidates where it is not."""
        self.check_ranks(f"on entering stage {stage}")
        self._retokenize()
        current = self.shape if stage else None
        candidates = self._choice.candidates(stage, current)
        self._grow(candidates[-1].depth, fresh=current is None)
        if len(candidates) == 1:
            self._settle(stage, candidates[0])
            return
        net = self._choice.open(stage, self.plan, current)
        if net.ends(self.step):
            self._decide(net)
            return
        self._ranks.rebuild(searching=True)
        self._record(stage, candidates[-1])
        self._draw(net)

    def _retokenize(self) -> None:
        if self._tokens is not None:
            self._tokens.enter(self.plan.stages[self.stage].stride)

    def _search(self) -> bool:
        """Go on with a supernet phase, if there is one, after an optimizer step; True where it ends."""
        net = self._choice.supernet
        if net is None:
            return False
        if net.evaluates(self.step):
            self._choice.evaluate(net, self.average)
        if net.ends(self.step):
            self.check_ranks(f"at the end of the search of stage {self.stage}")
            self._decide(net)
            return True
        self._draw(net)
        return False

    def _draw(self, net: Supernet) -> None:
        self.shape = net.draw(self.step)
        self._elastic.show(net.positions(self.shape.depth))

    def _decide(self, net: Supernet) -> None:
        """Go on with the chosen part of a supernet, which keeps its weights, average and optimizer state."""
        shape, record = self._choice.decide(net, self.stage)
        self.decisions.append(record)
        self._elastic.extract(net.positions(shape.depth), self.average, self._optimizers)
        self._settle(self.stage, shape)

    def _grow(self, depth: int, fresh: bool) -> None:
        """Bring the model to a depth: by its operator, or, while it holds no trained weights, as it was built."""
        depths, config = self._grid.splits[depth], self._config
        if fresh:
            self._elastic.set_depths(depths)
        elif depth > self._elastic.depth:
            parts = (config.operator, config.optimizer_state, self.average, self._optimizers)
            self._elastic.grow(depths, *parts, seed=1000 * config.seed + self.step)

    def _settle(self, stage: int, shape: Shape) -> None:
        """Train a shape to the end of the stage."""
        if stage < len(self.plan.stages) - 1:
            self.plan = with_shape(self.plan, self._grid, stage, shape)
        self.shape = shape
        self._ranks.rebuild(searching=False)
        self._record(stage, shape)

    def _record(self, stage: int, shape: Shape) -> None:
        trainable, total = count_trainable(self._elastic.model)
        self.history.append(
            ShapeRecord(
                stage=stage,
                step=self.step,
                searching=self.searching,
                depth=shape.depth,
                resolution=shape.resolution,
                trainable_parameters=trainable,
                trainable_fraction=trainable / total,
                stride=None if self._tokens is None else self._tokens.stride,
            )
        )
        logger.info(
            "stage %d of %d at step %d: %s%d of %d blocks, %d pixels",
            stage + 1, len(self.plan.stages), self.step, "a supernet of up to " if self.searching else "",
            shape.depth, self._grid.full.depth, shape.resolution,
        )  # fmt: skip

    def check_ranks(self, when: str) -> None:
        """Raise `SyncError` where two ranks differ in weights or averages."""
        averages = ((f"average of {name}", value) for name, value in self.average.values.items())
        self._ranks.check([*self._elastic.model.named_parameters(), *averages], when)

    def state_dict(self) -> dict[str, Any]:
        """Counter, plan, averages, search and history; what trains is derived from them on load."""
        return {
            "version": STATE_VERSION,
            "config": self._config.to_dict(),
            "model": fingerprint(self._elastic.model, self._layout),
            "step": self.step,
            "plan": self.plan.to_dict(),
            "depths": list(self._elastic.depths),
            "search": self._choice.state_dict(),
            "average": self.average.state_dict(),
            "history": [record.to_dict() for record in self.history],
            "decisions": self.decisions,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; weights and optimizer state are loaded by the host.

        Raises:
            StateError: The state is of another model, preset or version.
            SyncError: The ranks' weights differ after loading.
        """
        model = fingerprint(self._elastic.model, self._layout)
        check_state(state_dict, model, self._config, self.plan.num_training_steps)
        self.step = state_dict["step"]
        self.plan = GrowthPlan.from_dict(state_dict["plan"])
        self.average.load_state_dict(state_dict["average"], self.step)
        self.history = [ShapeRecord(**record) for record in state_dict["history"]]
        self.decisions = state_dict["decisions"]
        self.check_ranks("after loading")
        self._elastic.set_depths(state_dict["depths"])
        self._retokenize()
        self._choice.load_state_dict(state_dict["search"], self.stage, self.plan)
        entry = self.plan.stages[self.stage]
        self.shape = Shape(len(entry.blocks), int(entry.resolution))
        if self._choice.supernet is not None:
            self._draw(self._choice.supernet)
        self._ranks.rebuild(self.searching)
