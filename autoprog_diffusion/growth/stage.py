"""Taking a model from one stage to the next: trainable parameters, frozen front, reducers of the ranks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .adapter import StageEmbeddingLike
from .backends import fsdp2
from .backends.accelerate import is_compiled
from .backends.ddp import rebuild_reducer
from .backends.ranks import average_gradient, check_ranks_equal, world_size
from .frozen_front import FrozenFront
from .state import NamedTensors, State
from .storage.model import FrozenStorage
from .taken import check_free, release, take
from .units import Layout, set_trainable, trainable_names, trainable_now
from .watch.folding import FoldReminder


TABLE = "stage_embedding.table"  # name of the stage embedding's parameter beside the model's


class StageApplier:
    """Applies stages to one model.

    Args:
        model: The bare model.
        layout: Its units.
        embedding: Its stage embedding, if it has one.
        storage: What holds its frozen weights small.

    Raises:
        OrderError: The model is being grown already.
    """

    def __init__(
        self, model: nn.Module, layout: Layout, embedding: StageEmbeddingLike | None, storage: FrozenStorage
    ) -> None:
        check_free(model)
        self._storage = storage
        self._model = model
        self._wrapped = model
        self._layout = layout
        self._embedding = embedding
        self._ddp: DistributedDataParallel | None = None
        self.front = FrozenFront()
        self._reducer = ExitStack()
        self._reminder = FoldReminder()

    def prepare(self, wrapped: nn.Module, ddp: DistributedDataParallel | None) -> None:
        """Attach the stage embedding; `wrapped` is what the training loop calls, `ddp` its DDP wrapper."""
        check_free(self._model)
        take(self._model)
        self._wrapped = wrapped
        self._ddp = ddp
        if self._embedding is not None:
            self._embedding.attach(self._model)

    def enter(self, stage: int, blocks: Collection[int], *, fresh: bool) -> None:
        """Let `blocks` train, after checking that the ranks have not drifted apart.

        Args:
            stage: Index of the stage.
            blocks: Indices of the blocks that train.
            fresh: Whether the stage begins now, rather than being loaded in its middle.

        Raises:
            SyncError: The ranks' weights differ.
        """
        self.check_ranks(f"on entering stage {stage}")
        self.leave()
        set_trainable(self._model, trainable_names(self._layout, blocks))
        self._storage.follow()
        fsdp2.follow_trainable(self._wrapped)
        self.front.set(self._model, self._layout, blocks)
        if self._embedding is not None:
            self._embedding.enter(stage, fresh=fresh)
        if self._ddp is not None:
            rebuild_reducer(self._ddp)
        # The table lies outside the model, so neither DDP nor FSDP2 averages its gradient.
        if self._embedding is not None and world_size() > 1:
            self._reducer.enter_context(average_gradient(self._embedding.table, self._reduces_now))
        if is_compiled(self._wrapped):
            # Hooks are not guarded by default: a graph traced for the last stage would go on being used.
            torch.compiler.reset()

    def end(self) -> None:
        """The plan is over: check that the ranks have not drifted apart; the stage embedding has to be folded now.

        Raises:
            SyncError: The ranks' weights differ.
        """
        self.check_ranks("at the end of training")
        if self._embedding is not None:
            self._reminder.due()

    def leave(self) -> None:
        """Take off the hooks of the current stage, before a search or the end."""
        self.front.clear()
        self._reducer.close()

    def finish(self) -> None:
        """Fold the stage embedding away, and let everything train that did before growth; without communication."""
        self.leave()
        self._storage.restore()
        self.reshard()
        self._reminder.done()
        if self._embedding is not None:
            self._embedding.fold(self._model)
        set_trainable(self._model, self._layout.names)
        release(self._model)

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Fold the stage embedding inside a `with` block only."""
        self.reshard()
        self._reminder.done()
        with nullcontext() if self._embedding is None else self._embedding.folded(self._model):
            yield

    def embedding_state(self) -> NamedTensors | None:
        """A copy of the stage embedding's state, on the CPU; None without one."""
        if self._embedding is None:
            return None
        return {name: value.cpu().clone() for name, value in self._embedding.state_dict().items()}

    def load_embedding(self, state: State) -> None:
        """Continue with the stage embedding of a saved growth state."""
        if self._embedding is not None:
            self._embedding.load_state_dict(state["embedding"])

    def reshard(self) -> None:
        """Give sharded parameters back their shards, which optimizer and checkpoints know."""
        fsdp2.reshard(self._wrapped)

    @contextmanager
    def trained_before(self, state: State) -> Iterator[None]:
        """Let require gradient, inside a `with` block, what the last step before a saved growth state trained."""
        self.reshard()
        now = trainable_now(self._model)
        set_trainable(self._model, fsdp2.trained_before(state, self._layout))
        try:
            yield
        finally:
            set_trainable(self._model, now)

    def check_loaded(self, optimizers: Iterable[Any], state: State) -> None:
        """Raise `StateError` where a distributed checkpoint gave back the optimizer's state of some blocks only."""
        if fsdp2.is_sharded(self._model):
            trained = fsdp2.trained_before(state, self._layout)
            fsdp2.check_optimizer_state(optimizers, self.growing().items(), self._layout, trained)

    def check_ranks(self, when: str) -> None:
        """Raise `SyncError` where two ranks differ in a tensor, or a shard of one, that both hold."""
        self.reshard()
        named = self.named()
        replicated = {name: named[name] for name in named if not fsdp2.is_sharded_tensor(named[name])}
        if replicated:
            check_ranks_equal(replicated.items(), when)
        shards = fsdp2.shards_with_replicas(named.items())
        if shards:
            check_ranks_equal(shards.items(), when, fsdp2.place_in_mesh(named[next(iter(shards))]))

    def groups(self) -> list[dict[str, Any]]:
        """One optimizer group per unit, of the parameters that train in some stage."""
        named = self.named()
        names = {unit.name: unit.parameters for unit in self._layout.units if unit.parameters}
        if TABLE in named:
            names["stage_embedding"] = (TABLE,)
        return [{"name": unit, "params": [named[name] for name in own]} for unit, own in names.items()]

    def growing(self) -> dict[str, nn.Parameter]:
        """Every parameter that trains in some stage, by name."""
        self.reshard()
        names = {*self._layout.names, TABLE}
        return {name: parameter for name, parameter in self.named().items() if name in names}

    def named(self) -> dict[str, nn.Parameter]:
        """The model's parameters, then the stage embedding's, by name."""
        named = dict(self._model.named_parameters())
        if self._embedding is not None:
            named[TABLE] = self._embedding.table
        return named

    def _reduces_now(self) -> bool:
        """Whether the current backward pass is the last of its optimizer step."""
        if self._ddp is not None:
            return self._ddp.require_backward_grad_sync
        return fsdp2.reduces_gradients(self._wrapped)
