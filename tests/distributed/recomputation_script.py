"""What two ranks check together; `test_recomputation_ddp.py` launches it and reads what every rank wrote."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from rank_tools import BY_ID, finish, optimizer_of, refusal, same, unequal_on_ranks, weights_of
from torch import Tensor

from autoprog_diffusion import GrowthConfig, GrowthScheduler


FAMILIES = ("unet2d", "dit")
STEPS = 4


def train(family: str, accelerator: Accelerator, **settings: Any) -> tuple[dict[str, Tensor], list[Any]]:
    """Weights after two stages, and what their records say; the second rank's batches are larger."""
    rank = accelerator.process_index
    row = BY_ID[family]
    model = row.build().train()
    growth = GrowthScheduler(model, GrowthConfig(num_stages=2, min_trainable=0.5, **settings), accelerator)
    wrapped, optimizer = accelerator.prepare(model, optimizer_of(growth))
    growth.prepare(wrapped, num_training_steps=STEPS)
    try:
        for step in range(STEPS):
            accelerator.backward(row.loss(wrapped, 10 * step + rank, 2 + rank))
            optimizer.step()
            optimizer.zero_grad()
            growth.step()
        records = [[record.recomputed, record.memory] for record in growth.history]
        growth.fold(model)
        return weights_of(model, growth), records
    finally:
        accelerator._custom_objects.clear()
        accelerator.free_memory()


def main() -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    result: dict[str, Any] = {"ranks": accelerator.num_processes}
    for family in FAMILIES:
        plain, _ = train(family, accelerator, checkpointing="none")
        auto, free = train(family, accelerator, checkpointing="auto", memory_gb=1.0)
        memory = free[0][1]
        need = sum(memory[part] for part in ("weights", "gradients", "optimizer", "activations"))
        less, chosen = train(family, accelerator, checkpointing="auto", memory_gb=(need - 1) / 1e9)
        result[family] = {
            "same": [same(auto, plain), same(less, plain)],
            "equal": not unequal_on_ranks(less.items()),
            "free": free,
            "chosen": chosen,
            "refused": refusal(lambda f=family: train(f, accelerator, checkpointing="auto", memory_gb=1e-9)),
        }
    finish(result)


if __name__ == "__main__":
    main()
