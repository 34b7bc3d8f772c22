"""`ViTGrowth`: the one object a pretraining loop holds. The contract of `growth.GrowthScheduler`, for depth."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth import GrowthConfig, host
from autoprog_diffusion.growth.distributed import unwrap
from autoprog_diffusion.growth.errors import OrderError
from autoprog_diffusion.growth.plan import GrowthPlan
from autoprog_diffusion.growth.state import fingerprint
from autoprog_diffusion.growth.units import build_layout

from .average import WeightAverage
from .config import ViTGrowthConfig
from .elastic import ElasticModel
from .groups import find_groups
from .models import size_multiple
from .one_shot import LossFn
from .planning import Shape, check_backend, first_plan, make_grid, with_shape
from .ranks import RankSwitch, bare_optimizers
from .resolution import enable_dynamic_resolution, resize_images
from .searching import StageChoice
from .state import STATE_VERSION, ShapeRecord, check_state
from .supernet import Supernet


logger = logging.getLogger(__name__)


class ViTGrowth:
    """Grows a vision transformer in depth and resolution inside someone else's training loop (AutoProg-One).

    Args:
        model: The bare model of full depth, before its optimizer (over all its parameters).
        config: How it grows.
        accelerator: The `accelerate.Accelerator` of the loop; `None` in a plain PyTorch loop.
        blocks: Patterns of the blocks' names in forward order, for a model that declares none.

    Raises:
        UnitError: The model's blocks cannot be found, or differ in shape.
        PlanError: The model has fewer blocks than stages.
        ConfigError: The patches do not divide a resolution.
        OrderError: The model is wrapped already, or the accelerator's backend is not supported.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ViTGrowthConfig,
        accelerator: Any = None,
        *,
        blocks: Sequence[str] | None = None,
    ) -> None:
        check_backend(accelerator, model)
        host.check_bare(model)
        self.config = config
        self._model, self._accelerator = model, accelerator
        self._elastic = ElasticModel(model, find_groups(model, blocks))
        self._grid = make_grid(config, model, self._elastic.groups)
        self._resized = functools.partial(resize_images, multiple=size_multiple(model))
        names = [name for group in self._elastic.groups for name in group.blocks]
        self.layout = build_layout(model, [(name, [name]) for name in names], [])
        self._plan: GrowthPlan | None = None
        self._running = False
        self._step = 0
        self._shape = self._grid.shape(0)
        self.history: list[ShapeRecord] = []
        self.decisions: list[dict[str, Any]] = []

    def prepare(
        self,
        model: nn.Module,
        *,
        num_training_steps: int,
        optimizer: torch.optim.Optimizer | None = None,
        held_out: Sequence[tuple[Tensor, Tensor]] | None = None,
        loss_fn: LossFn | None = None,
    ) -> None:
        """Enter stage 0, and register for checkpointing with the accelerator.

        Args:
            model: What `accelerator.prepare` returned for the model.
            num_training_steps: Optimizer steps of the whole run.
            optimizer: Over all of the model's parameters; its state grows too. With an accelerator its prepared
                optimizers do.
            held_out: Training batches (images (N, C, H, W), targets) at full resolution that a search scores on, this
                rank's own. Their augmentation is fixed, since they are.
            loss_fn: `loss_fn(model, images, targets) -> loss` for a search.

        Raises:
            OrderError: Called twice, before `accelerator.prepare`, with another model, or with an optimizer that lacks
                parameters.
            PlanError: The run is too short for its stages.
            ConfigError: A search has nothing to score on.
            SyncError: The ranks' weights differ.
        """
        if self._plan is not None:
            raise OrderError("growth.prepare was called already: construct a new ViTGrowth for a new run.")
        ddp = host.check_prepared(model, self._model, self._accelerator, GrowthConfig())
        self._optimizers = bare_optimizers(optimizer, self._accelerator, self._model)
        parts = (self.config, self._grid, self._elastic, self.layout, self._resized)
        self._choice = StageChoice(*parts, held_out, loss_fn)
        plan = first_plan(self.config, self._grid, num_training_steps)
        self._ranks = RankSwitch(model, ddp, self.config.search == "one_shot")
        self._average = WeightAverage(self._model, self.config.ema_decay)
        self._disable_resolutions = enable_dynamic_resolution(self._model)
        self._plan, self._running = plan, True
        self._enter(0)
        if self._accelerator is not None:
            host.register(self._accelerator, self)

    def step(self) -> bool:
        """Count one optimizer step; call it after `optimizer.step()` and before saving a checkpoint.

        Returns:
            Whether a new sub-network shape was entered: a stage began, or a search ended.

        Raises:
            OrderError: `prepare` has not been called, or `finish` has.
            SyncError: A new shape is entered, or training ends, and the ranks' weights differ.
            SearchError: Candidates could not be scored, on any rank.
        """
        before = self.stage
        if not self._running:
            raise OrderError("step was called after finish: the run is over, construct a new ViTGrowth.")
        self._average.update()
        self._step += 1
        if self._step == self.plan.num_training_steps:
            self._check_ranks("at the end of training")
        if self.stage != before:
            self._enter(self.stage)
            return True
        return self._search()

    def resize(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images -> the same at the current resolution, bilinear with antialiasing.

        Raises:
            ConfigError: The batch is not four-dimensional, or smaller than the resolution.
        """
        return self._resized(images, self.resolution)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model hold its averaged weights inside a `with` block, to evaluate or save it."""
        with self._average.swapped_in():
            yield

    def ema_model(self) -> nn.Module:
        """A copy of the model as it is now, with its averaged weights."""
        with self.averaged():
            copied = copy.deepcopy(self._model)
        # Accelerate's autocast, an attribute of the instance, would still call the original.
        copied.__dict__.pop("forward", None)
        copied.__dict__.pop("_original_forward", None)
        return copied

    def finish(self, model: nn.Module) -> None:
        """Leave a plain model of full depth: every override and hook is removed. Call it when training has ended.

        Raises:
            OrderError: Another model, called twice or before `prepare`, or training ended before the full depth.
            SyncError: The ranks' weights differ.
        """
        if unwrap(model) is not self._model:
            raise OrderError("finish was given a model that this ViTGrowth does not hold: pass the trained one.")
        if not self._running:
            raise OrderError("finish runs once, after growth.prepare and training.")
        if self._elastic.depth != self._grid.full.depth:
            raise OrderError(
                f"training ended in stage {self.stage + 1} of {self.num_stages} with {self._elastic.depth} of "
                f"{self._grid.full.depth} blocks: the others hold no trained weights. Train to step "
                f"{self.plan.stages[-1].start} at least."
            )
        self._check_ranks("at the end of training")
        self._elastic.restore()
        self._disable_resolutions()
        self._running = False

    @property
    def plan(self) -> GrowthPlan:
        """Blocks and resolution of every stage, as decided so far.

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
    def num_stages(self) -> int:
        """Number of stages."""
        return self.config.num_stages

    @property
    def searching(self) -> bool:
        """Whether the next step trains a sub-network drawn from a supernet."""
        return self._plan is not None and self._choice.supernet is not None

    @property
    def resolution(self) -> int:
        """Image side in pixels of the next batch."""
        return self._shape.resolution

    @property
    def depth(self) -> int:
        """Blocks that the next step runs."""
        return self._shape.depth

    def state_dict(self) -> dict[str, Any]:
        """Counter, plan, averages, search and history; what trains is derived from them on load."""
        return {
            "version": STATE_VERSION,
            "config": self.config.to_dict(),
            "model": fingerprint(self._model, self.layout),
            "step": self._step,
            "plan": self.plan.to_dict(),
            "depths": list(self._elastic.depths),
            "search": self._choice.state_dict(),
            "average": self._average.state_dict(),
            "history": [record.to_dict() for record in self.history],
            "decisions": self.decisions,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; weights and optimizer state are loaded by the host.

        Raises:
            StateError: The state is of another model, preset or version.
            SyncError: The ranks' weights differ after loading.
        """
        model = fingerprint(self._model, self.layout)
        check_state(state_dict, model, self.config, self.plan.num_training_steps)
        self._step = state_dict["step"]
        self._plan = GrowthPlan.from_dict(state_dict["plan"])
        self._average.load_state_dict(state_dict["average"], self._step)
        self.history = [ShapeRecord(**record) for record in state_dict["history"]]
        self.decisions = state_dict["decisions"]
        self._check_ranks("after loading")
        self._elastic.set_depths(state_dict["depths"])
        self._choice.load_state_dict(state_dict["search"], self.stage, self.plan)
        entry = self.plan.stages[self.stage]
        self._shape = Shape(len(entry.blocks), int(entry.resolution))
        if self._choice.supernet is not None:
            self._draw(self._choice.supernet)
        self._ranks.rebuild(self.searching)

    def _enter(self, stage: int) -> None:
        """Begin a stage: with its shape where that is known, with a supernet of the candidates where it is not."""
        self._check_ranks(f"on entering stage {stage}")
        current = self._shape if stage else None
        candidates = self._choice.candidates(stage, current)
        self._grow(candidates[-1].depth, fresh=current is None)
        if len(candidates) == 1:
            self._settle(stage, candidates[0])
            return
        net = self._choice.open(stage, self.plan, current)
        if net.ends(self._step):
            self._decide(net)
            return
        self._ranks.rebuild(searching=True)
        self._record(stage, candidates[-1])
        self._draw(net)

    def _search(self) -> bool:
        """Go on with a supernet phase, if there is one, after an optimizer step; True where it ends."""
        net = self._choice.supernet
        if net is None:
            return False
        if net.evaluates(self._step):
            self._choice.evaluate(net, self._average)
        if net.ends(self._step):
            self._check_ranks(f"at the end of the search of stage {self.stage}")
            self._decide(net)
            return True
        self._draw(net)
        return False

    def _draw(self, net: Supernet) -> None:
        self._shape = net.draw(self._step)
        self._elastic.show(net.positions(self._shape.depth))

    def _decide(self, net: Supernet) -> None:
        """Go on with the chosen part of a supernet, which keeps its weights, average and optimizer state."""
        shape, record = self._choice.decide(net, self.stage)
        self.decisions.append(record)
        self._elastic.extract(net.positions(shape.depth), self._average, self._optimizers)
        self._settle(self.stage, shape)

    def _grow(self, depth: int, fresh: bool) -> None:
        """Bring the model to a depth: by its operator, or, while it holds no trained weights, as it was built."""
        depths, config = self._grid.splits[depth], self.config
        if fresh:
            self._elastic.set_depths(depths)
        elif depth > self._elastic.depth:
            parts = (config.operator, config.optimizer_state, self._average, self._optimizers)
            self._elastic.grow(depths, *parts, seed=1000 * config.seed + self._step)

    def _settle(self, stage: int, shape: Shape) -> None:
        """Train a shape to the end of the stage."""
        if stage < self.num_stages - 1:
            self._plan = with_shape(self.plan, self._grid, stage, shape)
        self._shape = shape
        self._ranks.rebuild(searching=False)
        self._record(stage, shape)

    def _record(self, stage: int, shape: Shape) -> None:
        counts = [(p.numel(), p.requires_grad) for p in self._model.parameters()]
        trainable, total = sum(count for count, trains in counts if trains), sum(count for count, _ in counts)
        self.history.append(
            ShapeRecord(stage, self._step, self.searching, shape.depth, shape.resolution, trainable, trainable / total)
        )
        logger.info(
            "stage %d of %d at step %d: %s%d of %d blocks, %d pixels",
            stage + 1, self.num_stages, self._step, "a supernet of up to " if self.searching else "",
            shape.depth, self._grid.full.depth, shape.resolution,
        )  # fmt: skip

    def _check_ranks(self, when: str) -> None:
        averages = ((f"average of {name}", value) for name, value in self._average.values.items())
        self._ranks.check([*self._model.named_parameters(), *averages], when)
