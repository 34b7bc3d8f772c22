"""The Stage Identifier (SID): a learned vector per stage, added to the timestep embedding and folded away after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.config import GrowthConfig
from autoprog_diffusion.growth.errors import OrderError, UnitError


# Diffusers' name for the module that embeds the timestep, and only the timestep: guidance, size, pooled-text and
# aspect embedders have other names, and folding into them would change what they mean.
TIMESTEP_NAMES = ("time_embedding", "timestep_embedder", "time_embedder")


class StageEmbedding(nn.Module):
    """A table of one row per stage, added to the output of every timestep embedder of a denoiser by a forward hook.

    It lives outside the model, so the model stays a plain Diffusers one (AutoProg-Zero, section on SID; the fold is
    ours). The table is kept in float32 whatever the model's type.

    Args:
        points: Names of the model's timestep embedders.
        num_stages: Number of stages, K.
        dim: Width D of the timestep embedding.
        dropout: Probability, per sample and forward pass, of the null row instead of the stage's (training mode).
        init: `zero`; `normal` for the paper's N(0, 0.02^2), drawn from a generator of its own; or `carry`, zero and
            every later row starting from the trained row before it, so that growth does not jump.
        ema_decay: Decay of the table's moving average; None keeps none.
    """

    def __init__(
        self,
        points: Sequence[str],
        num_stages: int,
        dim: int,
        dropout: float = 0.0,
        init: str = "zero",
        ema_decay: float | None = None,
    ) -> None:
        super().__init__()
        rows = num_stages + (dropout > 0)
        table = torch.zeros(rows, dim)
        if init == "normal":
            table.normal_(0.0, 0.02, generator=torch.Generator().manual_seed(0))
        self.table = nn.Parameter(table)  # (K, D), or (K + 1, D) with the null row last
        self.average: Tensor | None
        self.register_buffer("average", None if ema_decay is None else table.clone())
        self.points, self.num_stages, self.dropout = tuple(points), num_stages, dropout
        self.init, self.ema_decay = init, ema_decay
        self.stage = 0
        self._handles: list[Any] = []
        self._dropped: Tensor | None = None

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
            self.table[stage] = self.table[stage - 1]
            if self.average is not None:
                self.average[stage] = self.average[stage - 1]
        self.stage = stage

    def update_average(self, step: int) -> None:
        """Move the average after optimizer step number `step` (counted from 1), with Diffusers' warmed-up decay."""
        if self.average is not None and self.ema_decay is not None:
            decay = 0.0 if step <= 1 else min(self.ema_decay, step / (9 + step))
            self.average.lerp_(self.table.detach(), 1 - decay)

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        """Add the current stage's row (its average, where one is kept) to every embedder's last bias, and detach.

        Exact: an embedder ends in `linear_2`, so adding to its output is adding to its bias.
        """
        table = self.table if self.average is None else self.average
        for name in self.points:
            bias = _last_linear(model, name).bias
            bias.add_(table[self.stage].to(bias.dtype))
        self.detach()

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Draw who loses the stage, once per forward pass and outside of any checkpointed block.

        DiT embeds the timestep in every block, all must agree, and a recomputed block must not draw again.
        """
        if module.training and self.dropout > 0:
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.dim() > 0]
            self._dropped = torch.rand(len(tensors[0]), device=tensors[0].device) < self.dropout
        else:
            self._dropped = None

    def _add(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """(N, D) or (N, 1, D) timestep embedding -> the same plus the stage's row."""
        row = self.table[self.stage]
        if self._dropped is not None:
            mask = self._dropped.view(-1, *[1] * (output.dim() - 1))
            row = torch.where(mask, self.table[self.num_stages], row)
        return output + row.to(output.dtype)


def timestep_embedders(model: nn.Module) -> list[str]:
    """Names of the modules that embed the timestep of a Diffusers denoiser: by name, ending in `linear_2`.

    Raises:
        UnitError: There is none, or one that a bias cannot express (no bias, or an activation after it).
    """
    found = [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in TIMESTEP_NAMES and isinstance(getattr(module, "linear_2", None), nn.Linear)
    ]
    if not found:
        raise UnitError(
            f"{type(model).__name__} has no timestep embedder (a module named one of {TIMESTEP_NAMES} that ends in "
            "linear_2), so a stage embedding has no place: set GrowthConfig(stage_embedding=False)."
        )
    for name in found:
        if getattr(model.get_submodule(name), "post_act", None) is not None or _last_linear(model, name).bias is None:
            raise UnitError(
                f"{name} does not end in a biased linear layer, so a stage embedding could not be folded into it: "
                "set GrowthConfig(stage_embedding=False)."
            )
    return found


def build_stage_embedding(model: nn.Module, config: GrowthConfig) -> StageEmbedding:
    """The stage embedding of a Diffusers denoiser under a `GrowthConfig`.

    Raises:
        UnitError: The model has no place for one, or its embedders differ in width.
    """
    points = timestep_embedders(model)
    widths = {_last_linear(model, name).out_features for name in points}
    if len(widths) > 1:
        raise UnitError(
            f"the timestep embedders {points[:4]} differ in width {sorted(widths)}: set stage_embedding=False."
        )
    settings = (config.stage_dropout, config.stage_embedding_init, config.ema_decay)
    return StageEmbedding(points, config.plan_stages, widths.pop(), *settings)


def _last_linear(model: nn.Module, embedder: str) -> nn.Linear:
    return cast(nn.Linear, model.get_submodule(embedder).linear_2)
