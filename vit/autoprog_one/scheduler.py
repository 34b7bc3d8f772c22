"""`ViTGrowth`: the one object a pretraining loop holds, like `growth.GrowthScheduler` but for depth."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.backends import accelerate as host
from autoprog_diffusion.growth.errors import OrderError
from autoprog_diffusion.growth.plan import GrowthPlan
from autoprog_diffusion.growth.planning import announce_merges
from autoprog_diffusion.growth.protocol import Growth
from autoprog_diffusion.growth.units import build_layout, count_trainable
from autoprog_diffusion.growth.values import JSON
from autoprog_diffusion.growth.watch.training import TrainingWatch

from ..models import size_multiple
from ..resolution import enable_dynamic_resolution, resize_images
from .checks import check_backend, check_supernet, find_optimizers, make_retokenizer
from .config import ViTGrowthConfig
from .elastic import ElasticModel
from .groups import find_groups
from .one_shot import Batches, LossFn
from .search import ShapeSearch
from .shapes import first_plan, make_grid
from .stage_runner import ShapeRecord, StageRunner


class ViTGrowth:
    """Grows a vision transformer in depth and resolution inside someone else's training loop (AutoProg-One).

    Args:
        model: The bare model of full depth, before its optimizer (over all its parameters).
        config: How it grows.
        accelerator: The `accelerate.Accelerator` of the loop; `None` in a plain PyTorch loop.
        blocks: Patterns of the blocks' names in forward order, for a model that declares none.
        projection: Name of the patch projection, for strides of a model where `find_projection` does not find it.

    Raises:
        UnitError: The model's blocks cannot be found, or differ in shape.
        PlanError: A stride does not divide a stage's images.
        ConfigError: The patches do not divide a resolution.
        RetokenError: Strides are asked for, and the model cannot have them.
        OrderError: The model is wrapped already, or the accelerator's backend is not supported.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ViTGrowthConfig,
        accelerator: Any = None,
        *,
        blocks: Sequence[str] | None = None,
        projection: str | None = None,
    ) -> None:
        check_backend(accelerator, model)
        host.check_bare(model)
        self.config = config
        self._model = model
        self._accelerator = accelerator
        self._elastic = ElasticModel(model, find_groups(model, blocks))
        self._grid = make_grid(config, model, self._elastic.groups)
        self._tokens = make_retokenizer(config, model, self._grid, projection)
        self._resized = functools.partial(resize_images, multiple=size_multiple(model))
        names = [name for group in self._elastic.groups for name in group.blocks]
        self.layout = build_layout(model, [[name] for name in names], [])
        self._watch = TrainingWatch(model, accelerator)
        self._runner: StageRunner | None = None
        self._running = False

    def prepare(
        self,
        model: nn.Module,
        *,
        num_training_steps: int,
        optimizer: torch.optim.Optimizer | None = None,
        held_out: Batches | None = None,
        loss_fn: LossFn | None = None,
    ) -> None:
        """Enter stage 0, and register for checkpointing with the accelerator.

        Args:
            model: What `accelerator.prepare` returned for the model.
            num_training_steps: Optimizer steps of the whole run.
            optimizer: Over all parameters; its state grows too. With an accelerator its prepared optimizers do.
            held_out: Training batches (images (N, C, H, W), targets) at full resolution that a search scores on, this
                rank's own. Their augmentation is fixed, since they are.
            loss_fn: `loss_fn(model, images, targets) -> loss` for a search.

        Raises:
            OrderError: Called twice or too early, with another model, or with an optimizer that lacks parameters.
            PlanError: The run has no step.
            ConfigError: A search has nothing to score on.
            SyncError: The ranks' weights differ.
        """
        if self._runner is not None:
            raise OrderError("growth.prepare was called already: construct a new ViTGrowth for a new run.")
        ddp = host.check_prepared(model, self._model, self._accelerator)
        optimizers = find_optimizers(optimizer, self._accelerator, self._model)
        if self.config.search == "one_shot":
            check_supernet(model, ddp)
        search = ShapeSearch(
            config=self.config,
            grid=self._grid,
            elastic=self._elastic,
            layout=self.layout,
            resize=self._resized,
            batches=held_out or (),
            loss_fn=loss_fn,
        )
        plan = first_plan(self.config, self._grid, num_training_steps)
        announce_merges(plan, self.config.num_stages)
        self._watch.start(model, self._elastic.growing(), optimizers)
        self._runner = StageRunner(search, plan, optimizers, wrapped=model, ddp=ddp, tokens=self._tokens)
        self._disable_resolutions = enable_dynamic_resolution(self._model)
        self._running = True
        self._runner.enter(0)
        self._note(fresh=True)
        if self._accelerator is not None:
            host.register(self._accelerator, self)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's parameters, from which the optimizer is built."""
        return self._model.parameters()

    def step(self) -> bool:
        """Count one optimizer step; call it after `optimizer.step()` and before saving a checkpoint.

        Returns:
            Whether a new sub-network shape was entered: a stage began, or a search ended.

        Raises:
            OrderError: `prepare` has not been called, or `fold` has, or the loop does something that growth cannot
                live with (`growth/watch`).
            SyncError: A new shape is entered, or training ends, and the ranks' weights differ.
            SearchError: Candidates could not be scored, on any rank.
        """
        runner = self._started
        if not self._running:
            raise OrderError("step was called after fold: the run is over, construct a new ViTGrowth.")
        left = runner.plan.num_training_steps - runner.step
        following = runner.plan.stage_at(runner.step + 1)
        self._watch.check(ends=left == 1 or following != runner.stage, over=left <= 0)
        entered = runner.advance()
        if entered:
            self._note(fresh=True)
        return entered

    def resize(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images -> the same at the current resolution, bilinear with antialiasing.

        Raises:
            ConfigError: The batch is not four-dimensional, or smaller than the resolution.
        """
        return self._resized(images, self.resolution)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model hold its averaged weights inside a `with` block, to evaluate or save it."""
        with self._started.average.swapped_in():
            yield

    def ema_model(self) -> nn.Module:
        """A copy of the model as it is now, with its averaged weights."""
        with self.averaged():
            copied = copy.deepcopy(self._model)
        # Accelerate's autocast, an attribute of the instance, would still call the original.
        copied.__dict__.pop("forward", None)
        copied.__dict__.pop("_original_forward", None)
        return copied

    def fold(self, model: nn.Module) -> None:
        """Leave a plain model of full depth: every override and hook is removed. Call it when training has ended.

        Raises:
            OrderError: Another model, called twice or before `prepare`, or training ended before the full depth.
            SyncError: The ranks' weights differ.
        """
        host.check_foldable(model, self._model, self._running)
        runner = self._started
        if runner.searching or self._elastic.depth != self._grid.full.depth:
            raise OrderError(
                f"training ended in stage {self.stage + 1} of {self.num_stages} with {self._elastic.depth} of "
                f"{self._grid.full.depth} blocks: the others hold no trained weights. Train to step "
                f"{self.plan.stages[-1].start} at least."
            )
        runner.check_ranks("at the end of training")
        self._watch.stop(runner.step, runner.plan.num_training_steps)
        self._elastic.restore()
        self._disable_resolutions()
        self._running = False

    @property
    def plan(self) -> GrowthPlan:
        """Blocks and resolution of every stage, as decided so far.

        Raises:
            OrderError: `prepare` has not been called.
        """
        return self._started.plan

    @property
    def decisions(self) -> list[JSON]:
        """The decisions of a search so far: per stage the candidates with their scores, and the choice."""
        return [] if self._runner is None else self._runner.decisions

    @property
    def history(self) -> list[ShapeRecord]:
        """The shapes that were entered so far."""
        return [] if self._runner is None else self._runner.history

    @property
    def stage(self) -> int:
        """Index of the current stage."""
        return self._started.stage

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return len(self.plan.stages)

    @property
    def trainable_fraction(self) -> float:
        """Share of the model's parameters that train now, in [0, 1]."""
        trainable, total = count_trainable(self._model)
        return trainable / total

    @property
    def searching(self) -> bool:
        """Whether the next step trains a sub-network drawn from a supernet."""
        return self._started.searching

    @property
    def resolution(self) -> int:
        """Image side in pixels of the next batch."""
        return self._started.shape.resolution

    @property
    def depth(self) -> int:
        """Blocks that the next step runs."""
        return self._started.shape.depth

    def state_dict(self) -> JSON:
        """Counter, plan, averages, search and history; what trains is derived from them on load."""
        return self._started.state_dict()

    def load_state_dict(self, state_dict: JSON) -> None:
        """Continue where `state_dict` was taken; weights and optimizer state are loaded by the host.

        Raises:
            StateError: The state is of another model, preset or version.
            SyncError: The ranks' weights differ after loading.
        """
        self._started.load_state_dict(state_dict)
        self._note(fresh=False)

    def _note(self, *, fresh: bool) -> None:
        """Tell the watch what trains now. Sub-networks of a search leave blocks out, which get no gradient."""
        running = () if self.searching else self._elastic.running
        self._watch.enter([self.layout.blocks[index] for index in running], fresh=fresh)

    @property
    def _started(self) -> StageRunner:
        if self._runner is None:
            raise OrderError("call growth.prepare(model, num_training_steps=...) first, after accelerator.prepare.")
        return self._runner


if TYPE_CHECKING:
    # Checked by pyright: a training loop that is typed by `Growth` takes it.
    _GROWTH: type[Growth] = ViTGrowth
