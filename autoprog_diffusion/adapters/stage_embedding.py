"""The Stage Identifier (SID) of AutoProg-Zero: a learned vector per stage, added to the timestep embedding."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.backends.fsdp2 import add_vector
from autoprog_diffusion.growth.backends.ranks import rank
from autoprog_diffusion.growth.config import GrowthConfig
from autoprog_diffusion.growth.errors import OrderError, UnitError

from .saved_embedding import find_latents, row_per_sample, write_embedding
from .timestep import linear, timestep_embedders


logger = logging.getLogger(__name__)

NOT_IN_CHECKPOINT = (
    "the timestep embedder is frozen, so a LoRA checkpoint does not hold the stage embedding: call "
    "growth.save_stage_embedding(folder) beside it, before or after growth.fold, and sample with "
    "adapters.use_stage_embedding."
)


class StageEmbedding(nn.Module):
    """A table of one row per stage, added to the output of every timestep embedder of a denoiser by a forward hook.

    It lives outside the model, so the model stays a plain Diffusers one. After training `fold` adds the last row to
    the embedders' biases, which is exact and ours; the released code of AutoProg-Zero keeps the table. The table is
    float32 whatever the model's type.

    Args:
        points: Names of the layers that end the model's timestep embedders.
        num_stages: Number of stages, K.
        dim: Width D of the timestep embedding.
        dropout: Probability, per sample and forward pass, of the null row instead of the stage's (training mode).
        init: `zero`; `normal` for the paper's N(0, 0.02^2), drawn from a generator of its own; or `carry`, zero and
            every later row starting from the trained row before it, so that growth does not jump.
        ema_decay: Decay of the table's moving average; None keeps none.
        folds: Whether a checkpoint of the trainable parameters holds the layers' biases, so that a fold is not lost.
    """

    def __init__(
        self,
        points: Sequence[str],
        num_stages: int,
        dim: int,
        *,
        dropout: float = 0.0,
        init: str = "zero",
        ema_decay: float | None = None,
        folds: bool = True,
    ) -> None:
        super().__init__()
        rows = num_stages + (dropout > 0)
        table = torch.zeros(rows, dim)
        if init == "normal":
            table.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(0))
        self.table = nn.Parameter(table)  # (K, D), or (K + 1, D) with the null row last
        self.average: Tensor | None
        self.register_buffer("average", None if ema_decay is None else table.clone())
        self.points = tuple(points)
        self.num_stages = num_stages
        self.dropout = dropout
        self.init = init
        self.ema_decay = ema_decay
        self.folds = folds
        self.saved = False
        self.muted = False  # the forward pass adds no row: the biases hold it
        self.stage = 0
        self._place = torch.zeros(1, dtype=torch.long)  # (1,) the stage again, for compiled code
        self._handles: list[Any] = []
        self._in_weights: Tensor | None = None  # the row (D,) that the folded weights hold
        self._dropped: Tensor | None = None  # (N,) of the current forward pass: who has the null row

    def attach(self, model: nn.Module) -> None:
        """Add the hooks to `model`, and move the table to its device.

        Raises:
            OrderError: It is attached already.
        """
        if self._handles:
            raise OrderError("the stage embedding is attached already: call detach() first.")
        device = next(model.parameters()).device
        # In place: the optimizer already holds this very parameter.
        self.table.data = self.table.data.to(device)
        if self.average is not None:
            self.average = self.average.to(device)
        self._place = self._place.to(device)
        self._handles.append(model.register_forward_pre_hook(self._begin, with_kwargs=True))
        for name in self.points:
            self._handles.append(model.get_submodule(name).register_forward_hook(self._add))

    def detach(self) -> None:
        """Remove every hook from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def enter(self, stage: int, fresh: bool = True) -> None:
        """Use the row of `stage` from now on; with `init="carry"` a fresh stage starts from the row before it."""
        if fresh and self.init == "carry" and stage > 0:
            for table in (self.table, self._final_table()):
                table[stage] = table[stage - 1]
        self.stage = stage
        self._place.fill_(stage)

    def update_average(self, step: int) -> None:
        """Move the average after optimizer step number `step` (counted from 1), with Diffusers' warmed-up decay."""
        if self.average is not None and self.ema_decay is not None:
            decay = 0.0 if step <= 1 else min(self.ema_decay, step / (9 + step))
            self.average.lerp_(self.table.detach(), 1 - decay)

    def save(self, folder: str | Path) -> None:
        """Write the current stage's row and the null row (their averages, if they are kept) beside a checkpoint.

        `adapters.use_stage_embedding(pipeline, folder)` samples with them.
        """
        table = self._final_table()
        rows = {"stage": table[self.stage]}
        if self.dropout:
            rows["null"] = table[self.num_stages]
        if rank() == 0:
            write_embedding(folder, rows, {"points": self.points, "folded": self.folds})
        self.saved = True

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        """Add the current stage's row (its average, if one is kept) to every embedder's last bias, and detach.

        Exact: an embedder ends in a linear layer, so adding to its output is adding to its bias.
        """
        if not self.saved and not self.folds:
            logger.error(NOT_IN_CHECKPOINT)
        self._add_row(model)
        self.detach()
        if self.folds:
            self._in_weights = self._final_table()[self.stage].clone()

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As of any module; after a fold relative to what the weights hold, so that a resume adds no row twice."""
        state = super().state_dict(*args, **kwargs)
        if self._in_weights is None:
            return state
        return {name: value - self._in_weights for name, value in state.items()}

    @contextmanager
    def folded(self, model: nn.Module) -> Iterator[None]:
        """Fold inside a `with` block only; the biases are then what they were, bit for bit."""
        biases = [linear(model, name).bias for name in self.points]
        before = [bias.detach().clone() for bias in biases]
        was_muted = self.muted
        self.muted = True
        try:
            self._add_row(model)
            yield
        finally:
            self.muted = was_muted
            with torch.no_grad():
                for bias, old in zip(biases, before):
                    bias.copy_(old)

    def _add_row(self, model: nn.Module) -> None:
        """Add the current stage's row to the bias of every layer that the table enters at, in place."""
        row = self._final_table()[self.stage]
        for name in self.points:
            add_vector(linear(model, name).bias, row)

    def _final_table(self) -> Tensor:
        """The table that sampling uses, (K, D) or (K + 1, D): the average, if one is kept."""
        return self.table if self.average is None else self.average

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Draw who gets the null row, once per forward pass and outside of any checkpointed block.

        DiT embeds the timestep in every block: all blocks must agree, and a recomputed block must not draw again.
        """
        self._dropped = None
        if module.training and self.dropout > 0:
            latents = find_latents(args, kwargs)
            self._dropped = torch.rand(len(latents), device=latents[0].device) < self.dropout

    def _add(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """(N, D), (N, 1, D) or, with a timestep per frame or token, (N T, D) -> the same plus the stage's row."""
        if self.muted:
            return output
        row = self._row()
        if self._dropped is not None:
            timesteps = len(output) // len(self._dropped)  # per sample
            dropped = self._dropped.repeat_interleave(timesteps)
            row = row_per_sample(dropped, null=self.table[self.num_stages], stage=row, like=output)
        return output + row.to(output.dtype)

    def _row(self) -> Tensor:
        """The stage's row, (D,)."""
        if torch.compiler.is_compiling():
            # A number would be a part of the graph, and every stage had graphs of its own.
            return self.table.index_select(0, self._place).squeeze(0)
        return self.table[self.stage]


def build_stage_embedding(model: nn.Module, config: GrowthConfig) -> StageEmbedding | None:
    """The stage embedding of a Diffusers denoiser under a `GrowthConfig`.

    `stage_embedding=None` leaves it out, and logs why, if the model has no place for one, or if the layer that it
    would be folded into is frozen: a LoRA checkpoint holds no bias of the base model.

    Raises:
        UnitError: `stage_embedding=True` or `stage_dropout` is set, and the model has no place for one.
    """
    optional = config.stage_embedding is None and not config.stage_dropout
    try:
        points = timestep_embedders(model)
    except UnitError as error:
        if optional:
            logger.warning("no stage embedding: %s", error)
            return None
        raise
    biases = [linear(model, name).bias for name in points]
    folds = all(bias.requires_grad for bias in biases)
    if optional and not folds:
        logger.info("no stage embedding: the timestep embedder is frozen, so a checkpoint would not hold the fold.")
        return None
    if not folds:
        logger.warning(NOT_IN_CHECKPOINT)
    return StageEmbedding(
        points,
        num_stages=config.plan_stages,
        dim=len(biases[0]),
        dropout=config.stage_dropout,
        init=config.stage_embedding_init,
        ema_decay=config.ema_decay,
        folds=folds,
    )
