"""Every family, cut block by block as the recipes do it; started by `test_sharded_families.py`."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
from rank_tools import BY_ID, Family, finish, whole
from torch import nn
from torch.distributed.fsdp import fully_shard

from autoprog_diffusion.training.sharded import block_classes


def cut(model: nn.Module) -> list[str]:
    """Shard every block of the model, inner ones first, then the rest; the blocks' classes."""
    classes = block_classes(model)
    blocks = [module for module in model.modules() if type(module).__name__ in classes]
    for module in [*reversed(blocks), model]:
        fully_shard(module)
    return classes


def compare(family: Family) -> dict[str, Any]:
    """A pass of the sharded model, its loss and gradients, beside those of the whole one."""
    plain = family.build().train()
    sharded = family.build().train()
    classes = cut(sharded)
    losses = []
    for model in (plain, sharded):
        torch.manual_seed(3)
        loss = family.loss(model, 5)
        loss.backward()
        losses.append(float(loss.detach()))
    sharded.reshard()  # type: ignore[operator]
    worst = 0.0
    for (name, ours), theirs in zip(sharded.named_parameters(), plain.parameters()):
        if (ours.grad is None) != (theirs.grad is None):
            return {"classes": classes, "error": f"{name} has a gradient in one of them"}
        if theirs.grad is not None:
            worst = max(worst, float((whole(ours.grad) - theirs.grad).abs().max()))
    return {"classes": classes, "loss": losses, "gradient": worst}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    result: dict[str, Any] = {}
    for name in sys.argv[2].split(","):
        try:
            result[name] = compare(BY_ID[name])
        except Exception as error:  # noqa: BLE001 - the test says of which family
            result[name] = {"error": f"{type(error).__name__}: {error}"}
    finish(result)


if __name__ == "__main__":
    main()
