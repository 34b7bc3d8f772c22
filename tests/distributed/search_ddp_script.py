"""Two ranks with different data search together; started by `test_search_ddp.py` under torchrun."""

from __future__ import annotations

import diffusers
import torch
from accelerate import Accelerator
from rank_tools import finish

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth.backends.ranks import checksums
from autoprog_diffusion.growth.errors import SearchError


def build() -> torch.nn.Module:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
    )


def run(accelerator: Accelerator, cost: str, fails: bool = False) -> dict:
    model = build()
    growth = GrowthScheduler(model, GrowthConfig(search="zero_shot", search_cost=cost), accelerator)
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-3)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    growth.prepare(wrapped, num_training_steps=16)
    generator = torch.Generator().manual_seed(accelerator.process_index)
    if fails and accelerator.process_index == 1:
        growth._search._search._probe = None  # type: ignore[union-attr]
    error = ""
    for _ in range(16):
        images, time = torch.randn(4, 3, 8, 8, generator=generator), torch.randint(1000, (4,), generator=generator)
        with accelerator.accumulate(wrapped):
            accelerator.backward(wrapped(images, time, return_dict=False)[0].sub(images).square().mean())
            optimizer.step()
            optimizer.zero_grad()
        try:
            growth.step()
        except SearchError as caught:
            error = str(caught)
            break
    result = {"error": error, "plan": growth.plan.to_dict()["stages"], "decisions": growth.decisions}
    result["weights"] = checksums(model.parameters()).tolist()
    if not fails:
        growth.fold(wrapped)
    del wrapped, optimizer, growth, model
    accelerator.free_memory()
    return result


def main() -> None:
    accelerator = Accelerator(cpu=True)
    results = {cost: run(accelerator, cost) for cost in ("flops", "measured")}
    results["failing"] = run(accelerator, "flops", fails=True)
    finish(results)


if __name__ == "__main__":
    main()
