"""Which blocks compute their activations again in the backward pass: a property of every stage."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from .adapter import Adapter
from .backends.accelerate import is_compiled
from .backends.fsdp2 import is_sharded
from .backends.ranks import find_ddp, gather_object
from .backward_step import BackwardStep
from .config import GrowthConfig
from .errors import ConfigError, OrderError, UnitError
from .memory import GB, StageMemory, UnitBytes, choose_recomputed, held_bytes, peak_bytes
from .saved_bytes import SavedBytes
from .state import StageRecord, note_memory
from .units import Layout, front, unit_of_modules
from .watch.training import TrainingWatch


logger = logging.getLogger(__name__)


class Recomputation:
    """Gradient checkpointing of one model, stage by stage: the model calls `run` in place of its blocks.

    The frozen front, which keeps nothing, is never computed again. Under `auto` everything behind it is, in the first
    step of a stage; what that step saved says what the next ones need not compute again.

    Args:
        model: The bare model.
        layout: Its units.
        adapter: Of its family.
        config: `checkpointing` and `memory_gb`.
        backward_step: What frees gradients inside of the backward pass, if anything does.

    Raises:
        UnitError: The model's family has no gradient checkpointing that can be chosen block by block.
    """

    def __init__(
        self, model: nn.Module, layout: Layout, adapter: Adapter, config: GrowthConfig, backward_step: BackwardStep
    ) -> None:
        self._model = model
        self._backward_step = backward_step
        self._layout = layout
        self._mode = config.checkpointing
        self._budget = config.memory_gb or 0.0
        self._route = None if self._mode is None else adapter.checkpointing
        self._restore: Callable[[], None] | None = None
        self._ddp: DistributedDataParallel | None = None
        self._unit_of: dict[Any, int] = {}
        self._recomputed: set[int] = set()  # indices of `layout.units`
        self._parts: set[int] = set()  # units of which the model lets some part be computed again, in this stage
        self._inside = False  # whether a part runs that is computed again: parts inside of it are not once more
        self._measured: SavedBytes | None = None
        self._steps: int | None = None  # optimizer steps before the stage, until its first step is done
        if self._mode in ("all", "auto") and self._route is None:
            raise UnitError(
                f"checkpointing={self._mode!r} needs gradient checkpointing that can be chosen block by block, which "
                f"{type(model).__name__} does not have: use None, and switch on what its own library offers."
            )

    def prepare(self, wrapped: nn.Module, optimizers: Iterable[Any], accelerator: Any) -> None:
        """Take the model's blocks over.

        Args:
            wrapped: What the loop calls.
            optimizers: Those known by now.
            accelerator: Of the loop; it will know the optimizers.

        Raises:
            OrderError: `auto` with a compiled model, sharded parameters, or an unknown optimizer.
            UnitError: The model's class has no gradient checkpointing.
        """
        if self._route is None:
            return
        if self._mode == "auto":
            self._check_measurable(wrapped, known=accelerator is not None or len(list(optimizers)) > 0)
        self._ddp = find_ddp(wrapped)
        self._unit_of = unit_of_modules(self._model, self._layout)
        self._restore = self._route(self._model, self.run)

    def enter(self, blocks: Iterable[int], *, watch: TrainingWatch) -> None:
        """Begin a stage: everything behind the frozen front is computed again, or nothing.

        Args:
            blocks: Indices of the blocks that train.
            watch: Counts optimizer steps.
        """
        self._stop_measuring()
        frozen = len(front(self._layout, blocks))
        # The inputs, unit 0, run before the front.
        self._recompute_from(frozen + 1 if frozen else 0)
        self._parts.clear()
        self._steps = None if self._route is None else watch.optimizer_steps
        if self._mode == "auto":
            self._measured = SavedBytes(self._model, len(self._layout.units))
            self._measured.start()

    def leave(self) -> None:
        """A search follows: it may compute everything again."""
        self._stop_measuring()
        self._recompute_from(0)

    def stop(self) -> None:
        """Give the blocks back to the model as they were."""
        self._stop_measuring()
        if self._restore is not None:
            self._restore()
            self._restore = None

    def run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a part of a block, so that it is computed again in the backward pass if the stage wants that."""
        unit = self._unit_of[called_module(call)]
        if self._inside or unit not in self._recomputed or not torch.is_grad_enabled():
            return call(*args, **kwargs)
        self._parts.add(unit)
        body = partial(self._run_inside, call)
        if self._measured is not None:
            self._measured.enter_part(unit, body, args, kwargs)
        return checkpoint(body, *args, use_reentrant=False, **kwargs)

    def follow(
        self,
        history: list[StageRecord],
        optimizers: Iterable[Any],
        parameters: Callable[[], Iterable[Tensor]],
        watch: TrainingWatch,
    ) -> None:
        """After the first step of a stage, choose what the next ones compute again. All ranks call it together.

        Args:
            history: The stages entered; the last one gets what was chosen, and under `auto` the bytes of a step.
            optimizers: Of the loop.
            parameters: Gives what takes the memory of the model's, and of those outside of it that train as well.
            watch: Counts optimizer steps; a gradient scaler may leave the first ones out.

        Raises:
            ConfigError: The budget is too small; the message has the smallest that is not.
        """
        if self._steps is None or watch.optimizer_steps == self._steps:
            return
        self._steps = None
        memory = self._choose(optimizers, parameters)
        history[-1] = note_memory(history[-1], memory)

    def _choose(self, optimizers: Iterable[Any], parameters: Callable[[], Iterable[Tensor]]) -> StageMemory:
        """Choose, and predict where a step was measured; raises as `follow` does."""
        measured = self._measured
        self._stop_measuring()
        if measured is None:
            self._recomputed &= self._parts
            return StageMemory(self._names())
        bucketed = self._ddp is not None and not self._ddp.gradient_as_bucket_view
        tensors = [*parameters(), *self._model.buffers()]
        held = held_bytes(tensors, optimizers, bucketed=bucketed)
        held = replace(held, gradients=held.gradients - self._backward_step.spared_bytes)
        mine = (held, measured.units, self._parts)
        ranks = [mine]
        if self._ddp is not None:
            ranks = gather_object(mine)
        held, units, parts = _fullest(ranks)
        candidates = self._recomputed & parts
        self._check_budget(held, peak_bytes(units, candidates))
        room = int(self._budget * GB) - held.total
        self._recomputed = choose_recomputed(units, candidates, room)
        chosen = replace(held, recomputed=self._names(), activations=peak_bytes(units, self._recomputed))
        logger.info(f"{len(chosen.recomputed)} blocks are computed again, for {self._budget} GB: {chosen}")
        return chosen

    def _check_budget(self, held: StageMemory, activations: int) -> None:
        """Refuse a budget, with `ConfigError`, that recomputation alone does not keep.

        Args:
            held: Weights, gradients and optimizer state.
            activations: Bytes of the activations where everything is computed again.
        """
        least = held.total + activations
        if least <= self._budget * GB:
            return
        smallest = math.ceil(least / 1000) * 1000 / GB
        raise ConfigError(
            f"memory_gb={self._budget} is too little for this stage, also with all of its blocks computed again: "
            f"the smallest that is enough is {smallest:.6f}. Of that, weights are {held.weights / GB:.6f}, "
            f"gradients {held.gradients / GB:.6f}, the optimizer's state {held.optimizer / GB:.6f}. Use a smaller "
            "batch, images or optimizer state, or fewer blocks that train together."
        )

    def _names(self) -> tuple[str, ...]:
        """Names of the blocks that are computed again."""
        names = []
        for index, unit in enumerate(self._layout.blocks, start=1):
            if index in self._recomputed:
                names.append(unit.name)
        return tuple(names)

    def _check_measurable(self, wrapped: nn.Module, *, known: bool) -> None:
        """Refuse `auto`, with `OrderError`, where a step cannot be measured."""
        instead = 'Use checkpointing="all" or "none".'
        if is_compiled(wrapped):
            raise OrderError(f'checkpointing="auto" cannot measure a compiled model. {instead}')
        if is_sharded(self._model):
            raise OrderError(
                f'checkpointing="auto" does not know what sharded parameters take up in a step. {instead}'
            )
        if not known:
            raise OrderError(
                'checkpointing="auto" counts the optimizer\'s state: pass the optimizer, growth.prepare(model, '
                "num_training_steps=..., optimizer=optimizer)."
            )

    def _recompute_from(self, first: int) -> None:
        """Compute every unit from number `first` on again, unless nothing ever is."""
        self._recomputed = set()
        if self._mode in ("all", "auto"):
            count = len(self._layout.units)
            self._recomputed.update(range(first, count))

    def _stop_measuring(self) -> None:
        if self._measured is not None:
            self._measured.stop()
            self._measured = None

    def _run_inside(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a part; in the backward pass once more."""
        self._inside = True
        try:
            return call(*args, **kwargs)
        finally:
            self._inside = False


def called_module(call: Any) -> nn.Module | None:
    """The module that a model gives its checkpointing function to call: itself, its method, or one with arguments."""
    if isinstance(call, nn.Module):
        return call
    if isinstance(call, partial):
        # Of a method that is not bound the module is the first argument.
        for value in call.args:
            if isinstance(value, nn.Module):
                return value
        return called_module(call.func)
    return getattr(call, "__self__", None)


def _fullest(ranks: Sequence[tuple[StageMemory, list[UnitBytes], set[int]]]) -> Any:
    """What the ranks measured together: of every number the largest."""
    held = max((own for own, _, _ in ranks), key=lambda own: own.total)
    units = ranks[0][1]
    parts: set[int] = set()
    for _, others, own in ranks:
        units = [unit.most(other) for unit, other in zip(units, others)]
        parts |= own
    return held, units, parts
