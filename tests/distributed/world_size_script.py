"""One run on 2, then 1, then 2 ranks; every launch of this script is one part. Started by `test_world_sizes.py`.

All ranks see the same batch, whose average over ranks is exact: the number of ranks can then change no bit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from rank_tools import BY_ID, finish, optimizer_of, unequal_on_ranks, weights_of
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from autoprog_diffusion import GrowthConfig, GrowthScheduler


STEPS = 24
SEARCHED = GrowthConfig(search="zero_shot", stage_embedding_init="normal")
FIXED = GrowthConfig(num_stages=3, order="suffix", stage_embedding=False, direction="unfreeze")


def searched(folder: Path, first: int, last: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Steps of a run under DDP (or alone) that searches its schedule; saved where it stops."""
    family, accelerator = BY_ID["unet2d"], Accelerator(cpu=True)
    model = family.build().train()
    growth = GrowthScheduler(model, SEARCHED, accelerator)
    wrapped, optimizer = accelerator.prepare(model, optimizer_of(growth))
    growth.prepare(wrapped, num_training_steps=STEPS)
    if first:
        accelerator.load_state(str(folder / f"searched-{first}"))
    for step in range(first, last):
        accelerator.backward(family.loss(wrapped, step, batch=4))
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    accelerator.save_state(str(folder / f"searched-{last}"))
    calls = sorted(path.name for path in (folder / f"searched-{last}").glob("growth_calls_*"))
    return {"calls": calls, **told(growth)}, weights_of(model, growth)


def sharded(folder: Path, first: int, last: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Steps of a run whose parameters are sharded over the ranks that there are."""
    family = BY_ID["pixart"]
    model = family.build().train()
    for block in model.transformer_blocks:
        fully_shard(block)
    fully_shard(model)
    growth = GrowthScheduler(model, FIXED)
    optimizer = optimizer_of(growth)
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    if first:
        path = folder / f"sharded-{first}"
        state = torch.load(path / "growth.pt", weights_only=True)
        with growth.loading(state):
            weights, moments = get_state_dict(model, optimizer)
            dcp.load({"weights": weights, "moments": moments}, checkpoint_id=path)
            set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
        growth.load_state_dict(state)
    for step in range(first, last):
        family.loss(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"weights": weights, "moments": moments}, checkpoint_id=folder / f"sharded-{last}")
    if dist.get_rank() == 0:
        torch.save(growth.state_dict(), folder / f"sharded-{last}" / "growth.pt")
    return told(growth), weights_of(model, growth)


def told(growth: GrowthScheduler) -> dict[str, Any]:
    """The plan, and what was decided on the way; without the time that it took."""
    decisions = [{key: value for key, value in d.items() if key != "seconds"} for d in growth.decisions]
    history = [record.to_dict() for record in growth.history]
    return {"plan": growth.plan.to_dict()["stages"], "decisions": decisions, "history": history}


def main() -> None:
    torch.set_num_threads(1)
    root, parts = Path(sys.argv[2]), json.loads(sys.argv[3])
    dist.init_process_group("gloo")
    result: dict[str, Any] = {"ranks": dist.get_world_size()}
    for name, first, last in parts:
        folder = root / name
        for kind, train in (("searched", searched), ("sharded", sharded)):
            seen, weights = train(folder, first, last)
            seen["equal"] = not unequal_on_ranks(weights.items())
            result[f"{name}-{kind}"] = seen
            if dist.get_rank() == 0:
                torch.save(weights, folder / f"{kind}-{last}.pt")
    finish(result)


if __name__ == "__main__":
    main()
