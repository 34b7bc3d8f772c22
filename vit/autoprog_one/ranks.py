"""What growth in depth needs of several processes and of the training loop's optimizers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from autoprog_diffusion.growth.backends import accelerate as host
from autoprog_diffusion.growth.backends.ddp import rebuild_reducer
from autoprog_diffusion.growth.backends.ranks import check_ranks_equal
from autoprog_diffusion.growth.errors import OrderError


class RankSwitch:
    """Keeps DistributedDataParallel and torch.compile in step with what trains.

    Args:
        wrapped: What the training loop calls.
        ddp: Its DistributedDataParallel wrapper, if there is one.
        searched: Whether sub-networks will change from step to step.

    Raises:
        OrderError: A supernet phase is planned, and the model is compiled or has a static graph.
    """

    def __init__(self, wrapped: nn.Module, ddp: DistributedDataParallel | None, searched: bool) -> None:
        self._wrapped, self._ddp = wrapped, ddp
        self._find_unused = ddp is not None and ddp.find_unused_parameters
        if searched and host.is_compiled(wrapped):
            raise OrderError(
                "search='one_shot' changes the network in every step of its supernet phases, each a new graph for "
                "torch.compile: use search='zero_shot' or 'fixed', or do not compile."
            )
        if searched and ddp is not None and ddp.static_graph:
            raise OrderError(
                "search='one_shot' changes the network in every step of its supernet phases: set static_graph=False "
                "in DistributedDataParallel (DistributedDataParallelKwargs)."
            )

    def rebuild(self, searching: bool) -> None:
        """Rebuild the reducer for what trains now; sub-networks of a supernet leave parameters without gradient."""
        if self._ddp is not None:
            self._ddp.find_unused_parameters = searching or self._find_unused
            rebuild_reducer(self._ddp)
        if host.is_compiled(self._wrapped):
            torch.compiler.reset()

    def check(self, named: Iterable[tuple[str, Tensor]], when: str) -> None:
        """Raise `SyncError` where two ranks differ."""
        check_ranks_equal(named, when)


def bare_optimizers(given: Any, accelerator: Any, model: nn.Module) -> list[torch.optim.Optimizer]:
    """The loop's optimizers without Accelerate's wrappers.

    Raises:
        OrderError: There is none, or a parameter that will train is in none.
    """
    found = [] if given is None else [given]
    found += getattr(accelerator, "_optimizers", [])
    bare = list({id(o): o for o in (getattr(wrapper, "optimizer", wrapper) for wrapper in found)}.values())
    if not bare:
        raise OrderError(
            "growth.prepare found no optimizer, whose state grows with the blocks: pass optimizer=..., or prepare it "
            "with the accelerator first."
        )
    held = {id(p) for optimizer in bare for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if missing:
        raise OrderError(
            f"the optimizer lacks {len(missing)} parameters that will train, first {missing[:3]}: build it over all "
            "of model.parameters(), before accelerator.prepare and growth.prepare."
        )
    return bare
