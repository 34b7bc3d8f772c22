"""Two ranks train with low-bit optimizer state; `test_low_bit_ddp.py` launches it and reads what they wrote."""

from __future__ import annotations

import json
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rank_tools import BY_ID, finish, refusal, unequal_on_ranks
from torch.distributed.fsdp import fully_shard

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth.backward_step import check_backward_step
from autoprog_diffusion.growth.optimizer_offload import offload_optimizer
from autoprog_diffusion.training.optimizers import OPTIMIZERS, Settings
from autoprog_diffusion.training.trained_dtype import store_in_bfloat16


CASES = [
    ("adamw8bit", True, "freeze"),
    ("adamw8bit", True, "unfreeze"),
    ("adamw4bit", True, "freeze"),
    ("adamw_fp8", True, "freeze"),
    ("adafactor", False, "freeze"),
]
STEPS = 4


def trained(accelerator: Accelerator, name: str, rounded: bool, direction: str) -> dict[str, Any]:
    """Whether ranks whose random generators differ stay equal through two stages."""
    family = BY_ID["dit"]
    model = family.build().train()
    if rounded:
        store_in_bfloat16(model)
    set_seed(0, device_specific=True)  # as the recipes do: noise differs from rank to rank
    growth = GrowthScheduler(model, GrowthConfig(num_stages=2, direction=direction), accelerator)
    optimizer = OPTIMIZERS[name](growth.parameters(), Settings(lr=1e-2, seed=0 if rounded else None))
    if name == "adamw4bit":
        offload_optimizer(optimizer)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    growth.prepare(wrapped, num_training_steps=STEPS)
    refused = refusal(lambda: growth.step_in_backward(optimizer))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    unequal = []
    for step in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            loss = family.loss(wrapped, 10 * step + accelerator.process_index)
        accelerator.backward(loss)
        torch.rand(1 + accelerator.process_index)
        optimizer.step()
        optimizer.zero_grad()
        unequal += unequal_on_ranks(model.named_parameters())
        growth.step()
    moved = sum(not torch.equal(*pair) for pair in zip(before, model.parameters()))
    growth.fold(model)
    accelerator._custom_objects.clear()
    accelerator.free_memory()
    return {"unequal": unequal, "moved": moved, "refused": refused}


def sharded_refused() -> str:
    """What a model of FSDP2 is told; its parameters may be sharded after the optimizer was built."""
    model = BY_ID["dit"].build()
    early = torch.optim.AdamW(model.parameters())
    offload_optimizer(early)
    fully_shard(model)
    early.param_groups[0]["params"] = list(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    late = torch.optim.AdamW(model.parameters())
    refused = (lambda: check_backward_step(model, None), lambda: offload_optimizer(late), early.step)
    return "; ".join(map(refusal, refused))


def main() -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    result = {json.dumps(case): trained(accelerator, *case) for case in CASES}
    finish({"ranks": accelerator.num_processes, "cases": result, "sharded": sharded_refused()})


if __name__ == "__main__":
    main()
