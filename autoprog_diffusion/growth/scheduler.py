"""`GrowthScheduler`: the one object a training loop holds. The same contract as a learning-rate scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import StageEmbeddingLike, find_adapter
from .backends import accelerate as host
from .config import GrowthConfig
from .errors import OrderError
from .freezing import check_freezing, release_state
from .lr_rewarmup import Rewarm
from .plan import GrowthPlan, check_plan_fits
from .resize import resize_images
from .search_session import StageSearch, check_arguments, first_plan, start_search
from .stage import StageSwitch
from .state import STATE_VERSION, StageRecord, check_state, describe, fingerprint, record_stage
from .units import only_growing


class GrowthScheduler:
    """Unfreezes a model stage by stage inside someone else's training loop.

    Args:
        model: The bare model (not wrapped), after its EMA was built and before its optimizer. Parameters that do not
            require gradient now never will.
        config: How it grows.
        accelerator: The `accelerate.Accelerator` of the loop; `None` in a plain PyTorch loop.
        blocks: Patterns of the growable modules' names in forward order, for a model class the library does not know.

    Raises:
        UnitError: The model's blocks or timestep embedder cannot be named.
        OrderError: The model is wrapped already, or the accelerator's backend is not supported.

    Example:
        >>> model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(4)])
        >>> config = GrowthConfig(num_stages=2, min_trainable=0.5, order="suffix", stage_embedding=False)
        >>> growth = GrowthScheduler(model, config, blocks=["*"])
        >>> growth.prepare(model, num_training_steps=2)
        >>> growth.trainable_fraction, growth.step(), growth.trainable_fraction
        (0.5, True, 1.0)
    """

    def __init__(
        self,
        model: nn.Module,
        config: GrowthConfig,
        accelerator: Any = None,
        *,
        blocks: Sequence[str] | None = None,
    ) -> None:
        host.check_backend(accelerator, config, model)
        host.check_bare(model)
        adapter = find_adapter(model, blocks)
        self.config, self.layout = config, only_growing(model, adapter.layout(model))
        self._model, self._accelerator = model, accelerator
        self._names = [name for name, _ in model.named_parameters()]
        self._embedding: StageEmbeddingLike | None = None
        if config.stage_embedding is not False and host.backend(accelerator) != "FSDP":
            self._embedding = adapter.stage_embedding(model, config)
        self._switch = StageSwitch(model, self.layout, self._embedding)
        self._wrapped: nn.Module | None = None
        self._plan: GrowthPlan | None = None
        self._search: StageSearch | None = None
        self._optimizers: list[torch.optim.Optimizer] = []
        self._step = 0
        self.history: list[StageRecord] = []

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's parameters, then the stage embedding's: what the optimizer is built from."""
        yield from self._model.parameters()
        if self._embedding is not None:
            yield from self._embedding.parameters()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The same as one group per unit, for an optimizer with `config.rewarm_steps`; without what never trains."""
        return self._switch.groups()

    def prepare(
        self,
        model: nn.Module,
        *,
        num_training_steps: int,
        plan: GrowthPlan | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
        batches: Iterable[Any] | None = None,
    ) -> None:
        """Enter stage 0, and register for checkpointing with the accelerator.

        Args:
            model: What `accelerator.prepare` returned for the model.
            num_training_steps: Optimizer steps of the whole run.
            plan: Stages to follow instead of the configuration's fixed schedule.
            optimizer: Checked for missing parameters; with an accelerator its prepared optimizers are.
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
        # Not earlier: sharding puts other parameters in place.
        self._rewarm = Rewarm(self.config.rewarm_steps, self.layout, dict(self._model.named_parameters()))
        self._check_optimizers([optimizer] if optimizer is not None else [])
        blocks = [unit.name for unit in self.layout.blocks]
        plan = plan or first_plan(self.config, self.layout, num_training_steps)
        check_plan_fits(plan, blocks, num_training_steps, self.config.plan_stages if self._embedding else None)
        check_freezing(plan, self._optimizers, self._accelerator)
        self._wrapped, self._plan = model, plan
        self._switch.prepare(model, ddp)
        if self.config.search != "none":
            parts = (self.config, self._model, model, self.layout, self._embedding, loss_fn, batches)
            self._search = start_search(parts, plan, self._accelerator)
        self._enter(0)
        if self._accelerator is not None:
            host.register(self._accelerator, self)

    def step(self) -> bool:
        """Count one optimizer step, and say whether a stage was entered; call it after `ema.step`, before saving.

        Raises:
            OrderError: `prepare` has not been called, `fold` has, or the optimizer lacks parameters.
            SyncError: A new stage begins, or training ends, and the ranks' weights differ.
        """
        plan = self.plan
        if self._wrapped is None:
            raise OrderError("step was called after fold: the run is over, construct a new GrowthScheduler.")
        if not self._optimizers and self._accelerator is not None:
            self._check_optimizers([])
        before = plan.stage_at(self._step)
        self._step += 1
        if self._embedding is not None:
            self._embedding.update_average(self._step)
        stage = plan.stage_at(self._step)
        if stage != before:
            self._switch.leave()
            if self._search is not None:
                self._plan = self._search.decide(plan, stage)
            self._enter(stage)
        self._rewarm.follow(self.history, self._step)
        if self._search is not None:
            self._search.observe(self.plan, self._step)
        if self._step == plan.num_training_steps:
            self._switch.check_ranks("at the end of training")
        return stage != before

    def resize(self, images: Tensor) -> Tensor:
        """(N, C, H, W) images -> the same at the current stage's resolution, by area averaging.

        Raises:
            ConfigError: The resolution does not divide by `config.resolution_multiple`.
        """
        return resize_images(images, self.resolution, self.config.resolution_multiple)

    def fold(self, model: nn.Module) -> None:
        """Write the stage embedding into the model's weights, remove every hook and restore `requires_grad`.

        The model is then a plain one with exactly the same function. Call it after `ema.copy_to`, which would
        overwrite the folded weights. With `stage_dropout` the null row is not expressible and is dropped. Nothing is
        communicated: one process may fold alone, unless parameters are sharded.

        Raises:
            OrderError: Another model, or called twice or before `prepare`.
        """
        host.check_foldable(model, self._model, self._wrapped is not None)
        self._switch.finish()
        self._rewarm.stop()
        if self._search is not None:
            self._search.stop()
        self._wrapped = None

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

    @contextmanager
    def folded(self, model: nn.Module) -> Iterator[None]:
        """Fold inside a `with` block only, to save a plain model in the middle of training; raises as `fold` does."""
        host.check_foldable(model, self._model, self._wrapped is not None)
        self._switch.reshard()
        with nullcontext() if self._embedding is None else self._embedding.folded(self._model):
            yield

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
    def decisions(self) -> list[dict[str, Any]]:
        """What a search decided so far: per stage the candidates with their scores, and the choice."""
        return [] if self._search is None else self._search.decisions

    @property
    def stage(self) -> int:
        """Index of the current stage."""
        return self.plan.stage_at(self._step)

    @property
    def resolution(self) -> float | int:
        """Resolution of the current stage: fraction (float) or pixels (int)."""
        return self.plan.stages[self.stage].resolution

    @property
    def trainable_fraction(self) -> float:
        """Share of the model's parameters that train now, in [0, 1]."""
        return self._switch.trainable()[0] / self._switch.trainable()[1]

    def print_trainable_parameters(self) -> None:
        """Print how much of the model trains, in PEFT's words."""
        print(describe(self.plan, self.stage, *self._switch.trainable()))

    def state_dict(self) -> dict[str, Any]:
        """Counter, plan, embedding and history; everything else is derived from them on load."""
        table = None if self._embedding is None else self._embedding.state_dict()
        return {
            "version": STATE_VERSION,
            "step": self._step,
            "plan": self.plan.to_dict(),
            "model": fingerprint(self._model, self.layout),
            "embedding": None if table is None else {name: value.cpu().clone() for name, value in table.items()},
            "history": [record.to_dict() for record in self.history],
            "decisions": self.decisions,
        }

    @contextmanager
    def loading(self, state_dict: dict[str, Any]) -> Iterator[None]:
        """Load a distributed checkpoint inside: its optimizer's state returns for what trains, so all it has does."""
        self._check_state(state_dict)
        with self._switch.opened_before(state_dict):
            yield

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; the model's own weights are loaded by the host.

        Raises:
            StateError: The state is of another plan, model or version.
            SyncError: The ranks' weights differ after loading.
        """
        self._check_state(state_dict)
        self._switch.check_loaded(self._optimizers, state_dict)
        self._step = state_dict["step"]
        if self._search is not None:
            self._plan, self._search.decisions = GrowthPlan.from_dict(state_dict["plan"]), state_dict["decisions"]
        if self._embedding is not None:
            self._embedding.load_state_dict(state_dict["embedding"])
        self._enter(self.stage, record=False)
        self.history = [StageRecord.from_dict(record) for record in state_dict["history"]]
        self._rewarm.follow(self.history, self._step)
        if self._search is not None:
            self._search.observe(self.plan, self._step)

    def _enter(self, stage: int, record: bool = True) -> None:
        self._switch.enter(stage, self.plan.stages[stage].blocks, fresh=record)
        release_state(self.plan, self._optimizers)
        if record:
            self.history.append(record_stage(self.plan, stage, self._step, self.layout, *self._switch.trainable()))

    def _check_state(self, state_dict: dict[str, Any]) -> None:
        table = None if self._embedding is None else self._embedding.state_dict()
        check_state(state_dict, self.plan, fingerprint(self._model, self.layout), table, self._search is not None)

    def _check_optimizers(self, given: list[torch.optim.Optimizer]) -> None:
        optimizers = [*given, *getattr(self._accelerator, "_optimizers", [])]
        host.check_optimizers(optimizers, self._switch.growing())
        if optimizers or self._accelerator is None:
            self._rewarm.watch(optimizers)
        self._optimizers = optimizers
