"""The stages of one run: the shape that trains now, and the work between two optimizer steps."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from autoprog_diffusion.growth.backends import accelerate as host
from autoprog_diffusion.growth.backends.ddp import rebuild_reducer
from autoprog_diffusion.growth.backends.ranks import check_ranks_equal
from autoprog_diffusion.growth.errors import StateError
from autoprog_diffusion.growth.plan import GrowthPlan
from autoprog_diffusion.growth.planning import extended_plan
from autoprog_diffusion.growth.search_session import with_choice
from autoprog_diffusion.growth.state import STATE_VERSION, check_state, fingerprint
from autoprog_diffusion.growth.units import count_trainable
from autoprog_diffusion.growth.values import JSON

from ..ema import WeightAverage
from ..retokenize import Retokenizer
from .config import ViTGrowthConfig
from .search import ShapeSearch
from .shapes import Shape, shape_of
from .supernet import Supernet


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShapeRecord:
    """A sub-network shape that was entered.

    Attributes:
        stage: Index of the stage.
        step: Optimizer step (counted from 0) it was entered at.
        searching: Whether it is a supernet; depth and resolution are then its largest.
        depth: Blocks that run.
        resolution: Image side in pixels.
        trainable_parameters: Parameters that train.
        trainable_fraction: The same over all of the model's parameters.
        stride: Pixels from one token to the next; None where tokens do not grow.
    """

    stage: int
    step: int
    searching: bool
    depth: int
    resolution: int
    trainable_parameters: int
    trainable_fraction: float
    stride: int | None = None

    def to_dict(self) -> JSON:
        """The record as plain JSON types."""
        return asdict(self)


@dataclass
class StageRunner:
    """Leads a model through its stages, searched or not.

    Attributes:
        search: The search, with the configuration, the grid of shapes and the model.
        plan: The stages.
        optimizers: Optimizers whose state grows too.
        wrapped: The module that the training loop calls.
        ddp: Its DistributedDataParallel wrapper, if there is one.
        tokens: Changes the stride of the first projection, if the plan does.
    """

    search: ShapeSearch
    plan: GrowthPlan
    optimizers: list[torch.optim.Optimizer]
    wrapped: nn.Module
    ddp: DistributedDataParallel | None
    tokens: Retokenizer | None
    step: int = field(default=0, init=False)
    history: list[ShapeRecord] = field(default_factory=list, init=False)
    decisions: list[JSON] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.config = self.search.config
        self.grid = self.search.grid
        self.elastic = self.search.elastic
        self.average = WeightAverage(self.elastic.model, self.config.ema_decay)
        self.shape = shape_of(self.plan.stages[0])
        self._find_unused = self.ddp is not None and self.ddp.find_unused_parameters

    @property
    def stage(self) -> int:
        """Index of the current stage."""
        return self.plan.stage_at(self.step)

    @property
    def searching(self) -> bool:
        """Whether the next step trains a sub-network drawn from a supernet."""
        return self.search.supernet is not None

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
        return self._continue_search()

    def enter(self, stage: int) -> None:
        """Begin a stage, in a known shape or with a supernet of the candidates.

        Args:
            stage: Index of the stage; `step` is at its start.

        Raises:
            SyncError: The ranks' weights differ.
            SearchError: Candidates could not be scored, on any rank.
        """
        self.check_ranks(f"on entering stage {stage}")
        self._retokenize()
        current = self.shape if stage else None
        candidates = self.search.candidates(stage, self.plan, current)
        self._grow(candidates[-1].depth, fresh=current is None)
        if len(candidates) == 1:
            self._settle(candidates[0])
            return
        net = self.search.open(stage, self.plan, current)
        if net.ends(self.step):  # a search without a supernet phase
            self._decide(net)
            return
        self._rebuild_reducer()
        self._record(candidates[-1])
        self._draw(net)

    def check_ranks(self, when: str) -> None:
        """Raise `SyncError` where two ranks differ in weights or averages."""
        tensors: list[tuple[str, torch.Tensor]] = list(self.elastic.model.named_parameters())
        for name, value in self.average.values.items():
            tensors.append((f"average of {name}", value))
        check_ranks_equal(tensors, when)

    def state_dict(self) -> JSON:
        """Counter, plan, averages, search and history; what trains is derived from them on load."""
        return {
            "version": STATE_VERSION,
            "config": self.config.to_dict(),
            "model": self._fingerprint(),
            "step": self.step,
            "plan": self.plan.to_dict(),
            "depths": list(self.elastic.depths),
            "search": self.search.state_dict(),
            "average": self.average.state_dict(),
            "history": [record.to_dict() for record in self.history],
            "decisions": self.decisions,
        }

    def load_state_dict(self, state_dict: JSON) -> None:
        """Continue where `state_dict` was taken; weights and optimizer state are loaded by the host.

        Args:
            state_dict: Of a run with the same model and configuration.

        Raises:
            StateError: The state is of another model, preset or version.
            SyncError: The ranks' weights differ after loading.
        """
        _check_settings(state_dict, self.config)
        # The settings agree, so only a search, or another number of steps, can have made another plan.
        check_state(state_dict, self._fingerprint(), embedding=None)
        plan = extended_plan(state_dict, self.plan.num_training_steps)
        deepest = len(plan.stages[-1].blocks)
        if deepest < plan.num_blocks:
            raise StateError(
                f"a run of {plan.num_training_steps} steps has no room for the stages after step "
                f"{state_dict['step']}: it ends with {deepest} of {plan.num_blocks} blocks. Resume with more steps."
            )
        self.plan = plan
        self.step = state_dict["step"]
        self.average.load_state_dict(state_dict["average"], self.step)
        self.history = [ShapeRecord(**record) for record in state_dict["history"]]
        self.decisions = state_dict["decisions"]
        self.check_ranks("after loading")
        self.elastic.set_depths(state_dict["depths"])
        self._retokenize()
        self.search.load_state_dict(state_dict["search"], self.stage, self.plan)
        self.shape = shape_of(self.plan.stages[self.stage])
        if self.search.supernet is not None:
            self._draw(self.search.supernet)
        self._rebuild_reducer()

    def _fingerprint(self) -> JSON:
        """Names and shapes of the model, so that a checkpoint of another one is refused."""
        return fingerprint(self.elastic.model, self.search.layout)

    def _retokenize(self) -> None:
        """Set the stride of the current stage, where tokens grow."""
        if self.tokens is not None:
            stage = self.plan.stages[self.stage]
            self.tokens.enter(stage.stride)

    def _continue_search(self) -> bool:
        """Go on with a supernet phase, if there is one, after an optimizer step; True where it ends."""
        net = self.search.supernet
        if net is None:
            return False
        if net.evaluates(self.step):
            self.search.evaluate(net, self.average)
        if net.ends(self.step):
            self.check_ranks(f"at the end of the search of stage {self.stage}")
            self._decide(net)
            return True
        self._draw(net)
        return False

    def _draw(self, net: Supernet) -> None:
        """Let the candidate run that the next step trains."""
        self.shape = net.draw(self.step)
        self.elastic.show(net.positions(self.shape.depth))

    def _decide(self, net: Supernet) -> None:
        """Go on with the chosen part of a supernet, which keeps its weights, average and optimizer state."""
        shape, record = self.search.decide(net, self.stage)
        self.decisions.append(record)
        kept = net.positions(shape.depth)
        self.elastic.extract(kept, self.average, self.optimizers)
        self._settle(shape)

    def _grow(self, depth: int, fresh: bool) -> None:
        """Bring the model to a depth: by its operator, or, while it holds no trained weights, as it was built."""
        depths = self.grid.splits[depth]
        if fresh:
            self.elastic.set_depths(depths)
        elif depth > self.elastic.depth:
            self.elastic.grow(
                depths,
                self.config.operator,
                self.config.optimizer_state,
                average=self.average,
                optimizers=self.optimizers,
                seed=1000 * self.config.seed + self.step,
            )

    def _settle(self, shape: Shape) -> None:
        """Train a shape to the end of the stage."""
        last = len(self.plan.stages) - 1
        if self.config.search != "fixed" and self.stage < last:
            planned = self.plan.stages[self.stage]
            blocks = self.grid.blocks(shape.depth)
            choice = replace(planned, blocks=blocks, resolution=shape.resolution)
            self.plan = with_choice(self.plan, self.stage, choice)
        self.shape = shape
        self._rebuild_reducer()
        self._record(shape)

    def _rebuild_reducer(self) -> None:
        """Keep DistributedDataParallel and torch.compile in step with what trains."""
        if self.ddp is not None:
            # Sub-networks of a supernet leave parameters without gradient.
            self.ddp.find_unused_parameters = self.searching or self._find_unused
            rebuild_reducer(self.ddp)
        if host.is_compiled(self.wrapped):
            torch.compiler.reset()

    def _record(self, shape: Shape) -> None:
        """Note and log a shape that was entered."""
        trainable, total = count_trainable(self.elastic.model)
        record = ShapeRecord(
            stage=self.stage,
            step=self.step,
            searching=self.searching,
            depth=shape.depth,
            resolution=shape.resolution,
            trainable_parameters=trainable,
            trainable_fraction=trainable / total,
            stride=None if self.tokens is None else self.tokens.stride,
        )
        self.history.append(record)
        logger.info(
            "stage %d of %d at step %d: %s%d of %d blocks, %d pixels",
            self.stage + 1,
            len(self.plan.stages),
            self.step,
            "a supernet of up to " if self.searching else "",
            shape.depth,
            self.grid.full.depth,
            shape.resolution,
        )


def _check_settings(state: JSON, config: ViTGrowthConfig) -> None:
    """Raise `StateError` where a state was written under another configuration."""
    saved = state.get("config", {})
    wrong = []
    for name, now in config.to_dict().items():
        before = saved.get(name)
        if before != now:
            wrong.append(f"{name} was {before!r}, now {now!r}")
    if wrong:
        raise StateError(
            f"the checkpoint was written under other growth settings ({'; '.join(wrong)}): resume with its preset."
        )
