"""What two ranks check together of re-tokenization; `test_retoken_ddp.py` launches it and reads the results."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "vit"))

import growing  # noqa: E402
import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from rank_tools import finish, refusal, unequal_on_ranks, worst  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from autoprog_diffusion.vit.asvit import AsViT, Genotype  # noqa: E402
from autoprog_diffusion.vit.autoprog_one.config import ViTGrowthConfig  # noqa: E402
from autoprog_diffusion.vit.autoprog_one.scheduler import ViTGrowth  # noqa: E402


RANKS, STEPS = 2, 6
CONFIG = ViTGrowthConfig(2, min_depth=1.0, min_resolution=1.0, search="fixed", ema_decay=0.5, strides=(8, None))


def build(kind: str) -> tuple[nn.Module, int]:
    """A model for images of 32 or 16 pixels, and their side."""
    torch.manual_seed(0)
    if kind == "as_vit":
        return AsViT(Genotype.parse("4,2,2|2,1,2|2,1,2|2,1,2|16,16"), growing.CLASSES, 32).train(), 32
    return growing.hf_vit().train(), 16


def batch(seed: int, side: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, side, side, generator=generator), torch.arange(4) % growing.CLASSES


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    # A large epsilon: Adam would blow the rounding of gradients that are zero up to the size of a step.
    return torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)


def alone(kind: str) -> dict[str, Tensor]:
    """Weights of the same training in one process, on the batches of both ranks."""
    model, side = build(kind)
    growth, optimizer = ViTGrowth(model, CONFIG), optimizer_of(model)
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    for step in range(STEPS):
        for rank in range(RANKS):
            (growing.loss_fn(model, *batch(10 * step + rank, side)) / RANKS).backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def together(kind: str, accelerator: Accelerator) -> dict[str, Any]:
    model, side = build(kind)
    growth = ViTGrowth(model, CONFIG, accelerator)
    wrapped, optimizer = accelerator.prepare(model, optimizer_of(model))
    growth.prepare(wrapped, num_training_steps=STEPS)
    seen: dict[str, Any] = {"strides": [], "unequal": []}
    for step in range(STEPS):
        seen["strides"].append(growth.history[-1].stride)
        accelerator.backward(growing.loss_fn(wrapped, *batch(10 * step + accelerator.process_index, side)))
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
        if unequal_on_ranks(model.named_parameters()):
            seen["unequal"].append(step)
    growth.fold(wrapped)
    seen["weights"] = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    accelerator._custom_objects.clear()
    accelerator.free_memory()
    return seen


def drifted(accelerator: Accelerator) -> str:
    """What is said where one rank's weights moved before a new stage."""
    model, _ = build("as_vit")
    growth = ViTGrowth(model, CONFIG, accelerator)
    wrapped, _ = accelerator.prepare(model, optimizer_of(model))
    growth.prepare(wrapped, num_training_steps=2)
    if accelerator.process_index:
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
    return refusal(growth.step)


def main() -> None:
    torch.set_num_threads(1)
    kinds = ("as_vit", "hf_vit")
    references = {kind: alone(kind) for kind in kinds if os.environ["RANK"] == "0"}
    accelerator, result = Accelerator(cpu=True), {}
    for kind in kinds:
        seen = together(kind, accelerator)
        ours = seen.pop("weights")
        result[kind] = seen | ({"error": worst(ours, references[kind])} if kind in references else {})
    result["drifted"] = drifted(accelerator)
    finish(result)


if __name__ == "__main__":
    main()
