"""Switching a model from one stage to the next: what trains, what runs without gradient, what the ranks exchange."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .adapter import StageEmbeddingLike
from .backends import accelerate as host
from .backends.ddp import rebuild_reducer
from .backends.fsdp2 import (
    check_optimizer_state,
    follow_trainable,
    is_sharded,
    is_sharded_tensor,
    reduces_gradients,
    reshard,
    trained_before,
)
from .backends.ranks import average_gradient, check_ranks_equal, world_size
from .frozen_front import NoGradRegion
from .units import Layout, count_trainable, set_trainable, trainable_names


class StageSwitch:
    """Everything that changes at a stage boundary, for one model.

    Args:
        model: The bare model.
        layout: Its units.
        embedding: Its stage embedding, if it has one.
    """

    def __init__(self, model: nn.Module, layout: Layout, embedding: StageEmbeddingLike | None) -> None:
        self._model, self._layout, self._embedding = model, layout, embedding
        self._wrapped: nn.Module = model
        self._ddp: DistributedDataParallel | None = None
        self._region, self._reducer = NoGradRegion(), None

    def prepare(self, wrapped: nn.Module, ddp: DistributedDataParallel | None) -> None:
        """Learn the model's prepared form, once, and attach the stage embedding."""
        self._wrapped, self._ddp = wrapped, ddp
        if self._embedding is not None:
            self._embedding.attach(self._model)

    def enter(self, stage: int, blocks: Iterable[int], fresh: bool) -> None:
        """Freeze, truncate and rebuild for a stage, after checking that the ranks have not drifted apart.

        Raises:
            SyncError: The ranks' weights differ.
        """
        self.check_ranks(f"on entering stage {stage}")
        self.leave()
        set_trainable(self._model, trainable_names(self._layout, blocks))
        follow_trainable(self._wrapped)
        self._region.set(self._model, self._layout, blocks)
        if self._embedding is not None:
            self._embedding.enter(stage, fresh=fresh)
        if self._ddp is not None:
            rebuild_reducer(self._ddp)
        if self._embedding is not None and world_size() > 1:
            self._reducer = average_gradient(self._embedding.table, self._reduces_now)
        if host.is_compiled(self._wrapped):
            # Hooks are not guarded by default: a graph traced for the last stage would go on being used.
            torch.compiler.reset()

    def leave(self) -> None:
        """Take off the hooks of the current stage, before a search or the end."""
        self._region.clear()
        if self._reducer is not None:
            self._reducer.remove()
            self._reducer = None

    def finish(self) -> None:
        """Fold the stage embedding away, and let everything train that did before growth; without communication."""
        self.leave()
        self.reshard()
        if self._embedding is not None:
            self._embedding.fold(self._model)
        set_trainable(self._model, self._layout.names)

    def reshard(self) -> None:
        """Let the model's parameters be the ones that optimizer and checkpoints know, where they are sharded."""
        reshard(self._wrapped)

    @contextmanager
    def opened_before(self, state: dict[str, Any]) -> Iterator[None]:
        """Let require gradient, inside a `with` block, what the last step before a saved growth state trained."""
        self.reshard()
        now = {name for name, parameter in self._model.named_parameters() if parameter.requires_grad}
        set_trainable(self._model, trained_before(state, self._layout))
        try:
            yield
        finally:
            set_trainable(self._model, now)

    def check_loaded(self, optimizers: Iterable[Any], state: dict[str, Any]) -> None:
        """Raise `StateError` where a distributed checkpoint gave back the optimizer's state of some blocks only."""
        if is_sharded(self._model):
            trained = trained_before(state, self._layout)
            check_optimizer_state(optimizers, self.growing(), self._layout, trained)

    def check_ranks(self, when: str) -> None:
        """Raise `SyncError` where two ranks differ in what they both hold: not in a parameter that is sharded."""
        self.reshard()
        whole = [(name, tensor) for name, tensor in self._named_tensors() if not is_sharded_tensor(tensor)]
        if whole:
            check_ranks_equal(whole, when)

    def trainable(self) -> tuple[int, int]:
        """Number of the model's parameters that train now, and of all."""
        return count_trainable(self._model)

    def groups(self) -> list[dict[str, Any]]:
        """The parameters that train in some stage as one optimizer group per unit."""
        named = dict(self._model.named_parameters())
        units = [unit for unit in self._layout.units if unit.parameters]
        groups = [{"name": unit.name, "params": [named[name] for name in unit.parameters]} for unit in units]
        if self._embedding is not None:
            groups.append({"name": "stage_embedding", "params": [self._embedding.table]})
        return groups

    def growing(self) -> list[tuple[str, Any]]:
        """Every parameter that trains in some stage, with its name."""
        self.reshard()
        names = self._layout.names
        found = [(name, parameter) for name, parameter in self._model.named_parameters() if name in names]
        return found if self._embedding is None else [*found, ("stage_embedding.table", self._embedding.table)]

    def _reduces_now(self) -> bool:
        """Whether the current backward pass is the last of its optimizer step."""
        return self._ddp.require_backward_grad_sync if self._ddp is not None else reduces_gradients(self._wrapped)

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._model.named_parameters()
        if self._embedding is not None:
            yield "stage_embedding.table", self._embedding.table
