"""`GrowthScheduler`: the one object a training loop holds, used like a learning-rate scheduler."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .accumulation import StageAccumulation
from .adapter import StageEmbeddingLike, find_adapter
from .backends import accelerate as host
from .backward_step import BackwardStep, check_backward_step
from .config import GrowthConfig
from .ema import EMAParameters
from .errors import OrderError
from .lr_rewarmup import LRRewarmup
from .optimizer_state import OptimizerStates
from .plan import GrowthPlan
from .planning import Planner
from .progress import Progress
from .recomputation import Recomputation
from .search_session import LossFunction, RunParts, SearchSession, check_arguments
from .stage import StageApplier
from .state import STATE_VERSION, StageRecord, State, fingerprint, record_stage
from .storage.checks import check_storage
from .storage.model import FrozenStorage
from .units import block_sizes, only_growing
from .watch.training import TrainingWatch


class GrowthScheduler(Progress):
    """Trains part of a model, stage by stage, inside someone else's training loop.

    `step` is called once per optimizer step, as a learning-rate scheduler's is. Between two stages it changes which
    parameters require gradient; it adds nothing to the model. With an accelerator, its checkpoints hold the state.

    Args:
        model: The bare model (not wrapped), after its EMA was built and before its optimizer. Parameters that do not
            require gradient now never will.
        config: How many blocks train, and when.
        accelerator: The `accelerate.Accelerator` of the loop; `None` in a plain PyTorch loop.
        blocks: Patterns of the growable modules' names in forward order, for a model class the library does not know.

    Raises:
        UnitError: The model's blocks or timestep embedder cannot be named.
        OrderError: The model is wrapped already, or the accelerator's backend is not supported.

    Example:
        >>> model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(4)])
        >>> config = GrowthConfig(num_stages=2, min_trainable=0.5, stage_embedding=False)
        >>> growth = GrowthScheduler(model, config, blocks=["*"])
        >>> optimizer = torch.optim.AdamW(growth.parameters())
        >>> growth.prepare(model, num_training_steps=2, optimizer=optimizer)
        >>> growth.trainable_fraction, growth.step(), growth.trainable_fraction
        (1.0, True, 0.5)
    """

    def __init__(
        self, model: nn.Module, config: GrowthConfig, accelerator: Any = None, *, blocks: Sequence[str] | None = None
    ) -> None:
        host.check_backend(accelerator, config, model)
        host.check_bare(model)
        check_storage(config.frozen_dtype, accelerator, model)
        adapter = find_adapter(model, blocks)
        self.config = config
        self.layout = only_growing(model, adapter.layout(model), inputs_always=config.embedders_always)
        self.history: list[StageRecord] = []
        self._model = model
        self._accelerator = accelerator
        self._names = list(dict(model.named_parameters()))
        self._embedding: StageEmbeddingLike | None = None
        # Accelerate's FSDP takes no optimizer with parameters outside of the model.
        if config.stage_embedding is not False and host.backend(accelerator) != "FSDP":
            self._embedding = adapter.stage_embedding(model, config)
        self._storage = FrozenStorage(model, self.layout, config.frozen_dtype)
        self._applier = StageApplier(model, self.layout, self._embedding, self._storage)
        self._backward_step = BackwardStep()
        self._recomputation = Recomputation(model, self.layout, adapter, config, self._backward_step)
        self._averages = EMAParameters(model, self.layout.names, self._storage)
        self._rewarmup = LRRewarmup(config.rewarm_steps, self.layout)
        self._states = OptimizerStates(self.layout, config.window_state)
        self._search = SearchSession(config)
        sizes = block_sizes(model, self.layout)
        self._planner = Planner(config, self.layout, sizes, embedded=self._embedding is not None)
        self._watch = TrainingWatch(model, accelerator, self._applier.front)
        self._accumulation = StageAccumulation(accelerator)
        # Set by `prepare`; `fold` takes the model away.
        self._wrapped: nn.Module | None = None
        self._plan: GrowthPlan | None = None
        self._optimizers: list[Any] = []
        self._step = 0
        self._averages_checked = False

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's parameters, then the stage embedding's, to build the optimizer from."""
        return iter(self._applier.named().values())

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One optimizer group per unit, which `rewarm_steps` needs, of all parameters that train in some stage."""
        return self._applier.groups()

    def ema_parameters(self, parameters: Iterable[nn.Parameter] | None = None) -> list[nn.Parameter]:
        """The parameters for `EMAModel.step` of Diffusers: the same tensors, all with gradient (see `growth.ema`).

        Args:
            parameters: Those that the average was built from; by default all, as in `EMAModel(unet.parameters())`.
        """
        return self._averages.get(self._model.parameters() if parameters is None else parameters)

    def prepare(
        self,
        model: nn.Module,
        *,
        num_training_steps: int,
        plan: GrowthPlan | None = None,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        loss_fn: LossFunction | None = None,
        batches: Iterable[Any] | None = None,
    ) -> None:
        """Enter stage 0, and register for checkpointing with the accelerator.

        Args:
            model: What `accelerator.prepare` returned for the model.
            num_training_steps: Optimizer steps of the whole run.
            plan: Stages to follow instead of the configuration's, which are merged where the run has no room for them.
            optimizer: One or several, checked for missing parameters; an accelerator's prepared ones are known.
            loss_fn: `loss_fn(model, batch) -> loss` for the search, instead of replaying what the loop does.
            batches: For `loss_fn`, for example a dataloader.

        Raises:
            OrderError: Called twice, before `accelerator.prepare`, with another model, or with an optimizer that lacks
                parameters.
            PlanError: The plan does not fit the model or the number of steps.
            ConfigError: A plan and a search are both given, or a loss for a search that is off.
            SyncError: The ranks' weights differ.
        """
        if self._plan is not None:
            raise OrderError("growth.prepare was called already: construct a new GrowthScheduler for a new run.")
        check_arguments(self.config, plan, loss_fn, batches)
        host.check_same_parameters(self._model, self._names)
        ddp = host.check_prepared(model, self._model, self._accelerator, search=self.config.search)
        check_storage(self.config.frozen_dtype, self._accelerator, self._model)
        self._watch_optimizers(optimizer)
        plan = self._planner.prepare(plan, num_training_steps)
        self._states.check(plan, self._optimizers, self._accelerator, self._model)
        self._accumulation.prepare(plan)
        self._watch.start(model, self._applier.growing(), self._optimizers)
        self._wrapped = model
        self._plan = plan
        self._applier.prepare(model, ddp)
        self._recomputation.prepare(model, self._optimizers, self._accelerator)
        run = RunParts(self._model, model, self.layout, embedding=self._embedding, loss_fn=loss_fn, batches=batches)
        self._search.start(plan, self._accelerator, run)
        if self._averages_matter:
            self._averages.note()
        self._enter(0)
        if self._accelerator is not None:
            host.register(self._accelerator, self)

    def step(self) -> bool:
        """Count one optimizer step, and say whether a stage was entered; call it after `ema.step`, before saving.

        Raises:
            OrderError: `prepare` has not been called, `fold` has, the optimizer lacks parameters, or the plan freezes
                and an `EMAModel` was stepped without `ema_parameters()`.
            SyncError: A new stage begins, or training ends, and the ranks' weights differ.
        """
        plan = self.plan
        if self._wrapped is None:
            raise OrderError("step was called after fold: the run is over, construct a new GrowthScheduler.")
        if not self._optimizers and self._accelerator is not None:
            # It was prepared after `growth.prepare`.
            self._watch_optimizers(None)
        before = plan.stage_at(self._step)
        stage = plan.stage_at(self._step + 1)
        left = plan.num_training_steps - self._step
        self._watch.check(ends=stage != before or left == 1, over=left <= 0)
        self._step += 1
        # Not at the first step alone: an average may begin late.
        if self._averages_matter and (stage != before or not self._averages_checked):
            self._averages.check()
            self._averages_checked = True
        if self._embedding is not None:
            self._embedding.update_average(self._step)
        if stage != before:
            self._applier.leave()
            self._recomputation.leave()
            if self.config.search != "none":
                # It looks at the gradients of all blocks.
                self._storage.restore()
            with self.replaying():
                self._plan = self._search.decide(plan, stage)
            self._enter(stage)
        self._follow()
        if self._step == plan.num_training_steps:
            self._applier.end()
            self._end_storage()
        return stage != before

    def step_in_backward(self, optimizer: Any, *, max_norm: float | None = None) -> BackwardStep:
        """Let an optimizer step inside every backward pass from now on: each block as soon as its gradients are there.

        Args:
            optimizer: As in `prepare`, or as `accelerator.prepare` returned it.
            max_norm: Norm that the gradient of each block alone is clipped to.

        Raises:
            OrderError: Before `prepare`, or a loop that it cannot serve (see `growth.backward_step`).
        """
        passes = self._accumulation.most
        check_backward_step(self._model, self._accelerator, accumulation=passes, prepared=self._plan is not None)
        self._backward_step.begin(optimizer, max_norm)
        self._backward_step.enter(self.parameter_groups())
        return self._backward_step

    def fold(self, model: nn.Module) -> None:
        """Write the stage embedding into the model's weights, remove every hook and restore `requires_grad`.

        The model is then a plain one with exactly the same function. Call it after `ema.copy_to`, which would
        overwrite the folded weights. With `stage_dropout` the null row is not expressible and is dropped. Nothing is
        communicated: one process may fold alone, unless parameters are sharded.

        Raises:
            OrderError: Another model, or called twice or before `prepare`.
        """
        host.check_foldable(model, self._model, self._wrapped is not None)
        self._watch.stop(self._step, self.plan.num_training_steps)
        self._applier.finish()
        self._recomputation.stop()
        self._rewarmup.stop()
        self._search.stop()
        self._backward_step.stop()
        self._wrapped = None

    @contextmanager
    def folded(self, model: nn.Module) -> Iterator[None]:
        """Fold inside a `with` block only, to save a plain model in the middle of training; raises as `fold` does."""
        host.check_foldable(model, self._model, self._wrapped is not None)
        with self._applier.folded():
            yield

    @contextmanager
    def exact_weights(self, parameters: Iterable[nn.Parameter] | None = None) -> Iterator[None]:
        """Whole weights, all or some, inside a `with` block only, where `frozen_dtype` holds frozen ones small.

        For a validation that writes into parameters and puts them back, as `EMAModel.store`, `copy_to` and `restore`
        do. It takes the memory that `frozen_dtype` saves.
        """
        with self._storage.restored(parameters):
            yield

    def state_dict(self) -> State:
        """Step, plan, stage embedding, history and parked optimizer state; all else is derived from them on load."""
        return {
            "version": STATE_VERSION,
            "step": self._step,
            "plan": self.plan.to_dict(),
            **self._planner.state(),
            "searched": self._search.searches,
            "model": fingerprint(self._model, self.layout),
            "embedding": self._applier.embedding_state(),
            "history": [record.to_dict() for record in self.history],
            "decisions": self.decisions,
            "parked": self._states.state_dict(),
        }

    @contextmanager
    def loading(self, state_dict: State) -> Iterator[None]:
        """Use it around loading a distributed checkpoint: inside, all parameters that have optimizer state train.

        torch restores optimizer state only for parameters that require gradient.
        """
        self._check_state(state_dict)
        with self._applier.trained_before(state_dict):
            yield

    def load_state_dict(self, state_dict: State) -> None:
        """Continue where `state_dict` was taken; the model's own weights are loaded by the host.

        With another number of steps than the saved run had, the stages that have begun stay, and those to come move.

        Raises:
            StateError: The state is of another plan, model or version.
            SyncError: The ranks' weights differ after loading.
        """
        plan = self._check_state(state_dict)
        self._applier.check_loaded(self._optimizers, state_dict)
        self._step = state_dict["step"]
        self._plan = plan
        self._states.check(plan, self._optimizers, self._accelerator, self._model)
        self._states.load_state_dict(state_dict.get("parked", {}))
        self._search.load(state_dict)
        self._applier.load_embedding(state_dict)
        if self._averages_matter:
            self._averages.note()
        self._enter(self.stage, fresh=False)
        self.history = [StageRecord.from_dict(record) for record in state_dict["history"]]
        self._follow()

    def _enter(self, stage: int, *, fresh: bool = True) -> None:
        """Apply a stage to model and optimizers; a fresh one, rather than a loaded one, goes into the history."""
        blocks = self.plan.stages[stage].blocks
        growing = self._applier.growing()
        # What closes makes room first.
        self._states.close(self.plan, stage, self._optimizers, growing)
        self._applier.enter(stage, blocks, fresh=fresh)
        self._states.open(self._optimizers, growing)
        self._accumulation.enter(self.plan.stages[stage])
        self._recomputation.enter(blocks, watch=self._watch)
        self._watch.enter([self.layout.blocks[index] for index in blocks], fresh=fresh)
        self._backward_step.enter(self.parameter_groups())
        if fresh:
            self.history.append(record_stage(self._model, self.layout, self.plan, self._step))

    def _end_storage(self) -> None:
        """Give back exact weights, for averages to be copied over and models to be saved.

        They stay in CPU memory: the device may have no room for all of them.
        """
        if self.config.frozen_dtype is not None:
            self._storage.restore(torch.device("cpu"))
            self._watch.accept()

    def _follow(self) -> None:
        """Tell re-warm-up, recomputation and search that `_step` optimizer steps are done."""
        self._rewarmup.follow(self.history, self._step)
        self._recomputation.follow(self.history, self._optimizers, self._tensors, self._watch)
        self._search.observe(self.plan, self._step)

    def _tensors(self) -> list[Tensor]:
        """What takes the memory of all parameters now."""
        return self._storage.held(self.parameters())

    def _watch_optimizers(self, optimizer: Any) -> None:
        """Check the optimizers known by now, and let the re-warm-up hook them."""
        self._optimizers = host.known_optimizers(optimizer, self._accelerator)
        self._storage.prepare(self._optimizers)
        host.check_optimizers(self._optimizers, self._applier.growing().items())
        if self._optimizers or self._accelerator is None:
            # Sharding puts other parameters in place, so names are looked up now.
            self._rewarmup.watch(self._optimizers, dict(self._model.named_parameters()))

    def _check_state(self, state_dict: State) -> GrowthPlan:
        """The plan to go on with; raises `StateError` where a saved state belongs to another run."""
        model = fingerprint(self._model, self.layout)
        return self._planner.resume(state_dict, model, self._applier.embedding_state())
