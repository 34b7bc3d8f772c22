"""Two ranks with different data search together; started by `test_search_ddp.py` under torchrun."""

from __future__ import annotations

import warnings
from itertools import combinations
from statistics import mean
from typing import Any

import diffusers
import torch
from accelerate import Accelerator
from rank_tools import finish

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth.backends.ranks import checksums, gather_object
from autoprog_diffusion.growth.errors import GrowthWarning, SearchError
from autoprog_diffusion.search.noise_scale import gradient_noise


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


def noise(accelerator: Accelerator) -> dict:
    """The noise scale of both ranks' batches, beside what all pairs of their gradients give."""
    model = build()
    growth = GrowthScheduler(model, GrowthConfig(stage_embedding=True), accelerator)
    wrapped, optimizer = accelerator.prepare(model, torch.optim.SGD(growth.parameters()))
    growth.prepare(wrapped, num_training_steps=16)
    generator = torch.Generator().manual_seed(accelerator.process_index)
    batches = [torch.randn(2, 3, 8, 8, generator=generator) for _ in range(3)]

    def loss(network: Any, images: torch.Tensor) -> torch.Tensor:
        return network(images, torch.tensor([7, 500]), return_dict=False)[0].sub(images).square().mean()

    found = gradient_noise(wrapped, loss, batches, calls=3, growth=growth, accelerator=accelerator)
    gradients = []
    model.eval()
    for images in batches:
        parts = torch.autograd.grad(loss(model, images), list(model.parameters()))
        gradients.append(torch.cat([part.flatten() for part in parts]).double())
    vectors = [vector for rank in gather_object(gradients) for vector in rank]
    pairs = [float(a @ b) for a, b in combinations(vectors, 2)]
    squares = [float(vector @ vector) for vector in vectors]
    signal = mean(pairs)
    result = {"found": found.total.to_dict(), "calls": len(found.calls), "units": len(found.units)}
    result["literal"] = {"signal": signal, "noise": 2 * (mean(squares) - signal)}
    growth.fold(wrapped)
    del wrapped, optimizer, growth, model
    accelerator.free_memory()
    return result


def main() -> None:
    accelerator = Accelerator(cpu=True)
    results = {cost: run(accelerator, cost) for cost in ("flops", "measured")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GrowthWarning)  # of a fold before the end of the plan
        results["noise"] = noise(accelerator)
    results["failing"] = run(accelerator, "flops", fails=True)
    finish(results)


if __name__ == "__main__":
    main()
