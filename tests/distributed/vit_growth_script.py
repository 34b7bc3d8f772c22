"""What two ranks check together of growth in depth; `test_vit_growth_ddp.py` launches it and reads the results."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "vit"))

import growing  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from accelerate.utils import DistributedDataParallelKwargs  # noqa: E402
from rank_tools import finish, refusal, unequal_on_ranks, worst  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from autoprog_diffusion.vit.autoprog_one.config import ViTGrowthConfig  # noqa: E402
from autoprog_diffusion.vit.autoprog_one.scheduler import ViTGrowth  # noqa: E402


RANKS, STEPS = 2, 12
CASES = {
    "one_shot-momentum": {"search": "one_shot", "operator": "momentum"},
    "one_shot-measured": {"search": "one_shot", "search_cost": "measured", "operator": "identity"},
    "zero_shot-stacking": {"search": "zero_shot", "operator": "stacking", "optimizer_state": "fresh"},
    "fixed-random": {"search": "fixed", "operator": "random"},
    "fixed-interpolation": {"search": "fixed", "operator": "interpolation", "optimizer_state": "average"},
}
# Not where times are measured, nor where scores of two halves of the data do not average to those of the whole.
EXPECTED = ("one_shot-momentum", "fixed-random", "fixed-interpolation")


def config(case: str) -> ViTGrowthConfig:
    return ViTGrowthConfig(num_stages=3, search_steps=2, evaluations=2, **CASES[case])


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    # A large epsilon: Adam would blow the rounding of gradients that are zero up to the size of a step.
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, eps=1e-3)


def held_out(rank: int) -> list[tuple[Tensor, Tensor]]:
    return [growing.batch(1000 + 10 * index + rank) for index in range(2)]


def build() -> nn.Module:
    torch.manual_seed(0)
    return growing.hf_vit().train()


def alone(case: str) -> tuple[dict[str, Tensor], list[Any]]:
    """The same training in one process, on the batches of both ranks; its weights and the shapes it chose."""
    model = build()
    growth, optimizer = ViTGrowth(model, config(case)), optimizer_of(model)
    batches = [batch for rank in range(RANKS) for batch in held_out(rank)]
    parts = {"held_out": batches, "loss_fn": growing.loss_fn}
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer, **parts)
    for step in range(STEPS):
        for rank in range(RANKS):
            images, targets = growing.batch(10 * step + rank)
            (growing.loss_fn(model, growth.resize(images), targets) / RANKS).backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    growth.fold(model)
    return {n: p.detach().clone() for n, p in model.named_parameters()}, growth.plan.to_dict()["stages"]


def together(case: str, accelerator: Accelerator, steps: range, folder: Path, save: int | None) -> dict[str, Any]:
    """Train on two ranks, from a checkpoint where the first step is not 0; what was seen at every step."""
    rank, model = accelerator.process_index, build()
    growth = ViTGrowth(model, config(case), accelerator)
    wrapped, optimizer = accelerator.prepare(model, optimizer_of(model))
    growth.prepare(wrapped, num_training_steps=STEPS, held_out=held_out(rank), loss_fn=growing.loss_fn)
    if steps.start:
        accelerator.load_state(str(folder))
    seen: dict[str, Any] = {"unequal": [], "shapes": [], "find_unused": [], "searching": [], "moved": []}
    for step in steps:
        if step == save:
            accelerator.save_state(str(folder))
        seen["shapes"].append([growth.depth, growth.resolution])
        seen["find_unused"].append(wrapped.find_unused_parameters)
        seen["searching"].append(growth.searching)
        images, targets = growing.batch(10 * step + rank)
        accelerator.backward(growing.loss_fn(wrapped, growth.resize(images), targets))
        hidden = [
            p for i, b in enumerate(model.vit.layers) if i not in growth._elastic.running for p in b.parameters()
        ]
        before = [p.detach().clone() for p in hidden]
        optimizer.step()
        seen["moved"].append(any(not torch.equal(p, old) for p, old in zip(hidden, before)))
        optimizer.zero_grad()
        growth.step()
        state = [*model.named_parameters(), *growth._started.average.values.items()]
        seen["unequal"] += [f"step {step}: {name}" for name in unequal_on_ranks(state)]
    growth.fold(wrapped)
    seen["plan"] = growth.plan.to_dict()["stages"]
    seen["choices"] = [[d["choice"], d.get("w"), d["candidates"]] for d in growth.decisions]
    seen["weights"] = {n: p.detach().clone() for n, p in model.named_parameters()}
    accelerator._custom_objects.clear()
    accelerator.free_memory()
    return seen


def fresh(accelerator: Accelerator, loss_fn: Any, case: str = "one_shot-momentum") -> tuple[ViTGrowth, Any, Any]:
    model = build()
    growth = ViTGrowth(model, config(case), accelerator)
    wrapped, optimizer = accelerator.prepare(model, optimizer_of(model))
    rank = accelerator.process_index
    growth.prepare(wrapped, num_training_steps=STEPS, held_out=held_out(rank), loss_fn=loss_fn)
    return growth, wrapped, optimizer


def broken_loss(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    if dist.get_rank() == 1:
        raise RuntimeError("out of luck")
    return growing.loss_fn(model, images, targets)


def failures(accelerator: Accelerator) -> dict[str, str]:
    """A loss that raises on rank 1, a rank that has drifted, and a wrapper that cannot change its graph."""
    said = {}
    growth, _, _ = fresh(accelerator, broken_loss)
    said["broken"] = refusal(lambda: [growth.step() for _ in range(2)])
    accelerator._custom_objects.clear()
    growth, wrapped, _ = fresh(accelerator, growing.loss_fn, "fixed-interpolation")
    if accelerator.process_index == 1:
        with torch.no_grad():
            wrapped.module.classifier.bias[0] += 1e-3
    said["drifted"] = refusal(lambda: [growth.step() for _ in range(4)])
    accelerator._custom_objects.clear()
    accelerator.ddp_handler = DistributedDataParallelKwargs(static_graph=True)
    said["static"] = refusal(lambda: fresh(accelerator, growing.loss_fn))
    accelerator._custom_objects.clear()
    accelerator.free_memory()
    return said


def main() -> None:
    torch.set_num_threads(1)
    # The first rank is enough: the weights of all are compared bit for bit.
    references = {case: alone(case) for case in EXPECTED if os.environ["RANK"] == "0"}
    plain = DistributedDataParallelKwargs(find_unused_parameters=False)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[plain])
    folder = Path(sys.argv[1], "checkpoint")
    result: dict[str, Any] = {}
    for case in CASES:
        seen = together(case, accelerator, range(STEPS), folder, save=5 if case == "one_shot-momentum" else None)
        ours = seen.pop("weights")
        if case in references:
            weights, stages = references[case]
            seen |= {"error": worst(ours, weights), "expected": stages}
        result[case] = seen
        if case == "one_shot-momentum":
            resumed = together(case, accelerator, range(5, STEPS), folder, save=None).pop("weights")
            result["resumed"] = all(torch.equal(ours[name], resumed[name]) for name in ours)
    result["failures"] = failures(accelerator)
    finish(result)


if __name__ == "__main__":
    main()
