"""What two ranks check together; `test_growth_ddp.py` launches it and reads what every rank wrote."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from rank_tools import (
    BY_ID,
    Family,
    alone,
    equal_on_ranks,
    finish,
    optimizer_of,
    refusal,
    seeds,
    unequal_on_ranks,
    weights_of,
    worst,
)
from torch import Tensor

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth.power_average import PowerAverage


RANKS, STEPS, ACCUMULATION = 2, 6, 2
CLIP = 0.3  # below the gradient norms of these losses, so that clipping acts


def config(order: str) -> GrowthConfig:
    settings: dict[str, Any] = {"num_stages": 3, "order": order, "direction": "unfreeze"}
    if order == "freeze":
        settings |= {"order": "suffix", "direction": "freeze"}
    elif order.endswith("window"):
        settings |= {"num_stages": 6, "sweeps": 2, "order": "suffix", "direction": "window", "window_state": "park"}
    if order.startswith("small"):
        settings["frozen_dtype"] = "int8"
    return GrowthConfig(**settings, stage_embedding_init="normal", ema_decay=0.9)


def reference(family: Family, order: str) -> dict[str, Tensor]:
    """The same training in one process, on the concatenated batches."""
    model, growth = alone(family, config(order), STEPS, ACCUMULATION, CLIP)
    growth.fold(model)
    return weights_of(model, growth)


def together(family: Family, order: str, accelerator: Accelerator) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Train on two ranks; what was seen, and the final weights."""
    rank = accelerator.process_index
    model = family.build().train()
    growth = GrowthScheduler(model, config(order), accelerator)
    wrapped, optimizer = accelerator.prepare(model, optimizer_of(growth))
    growth.prepare(wrapped, num_training_steps=STEPS)
    table = growth.stage_embedding.table
    seen: dict[str, Any] = {"unequal": [], "moved": [], "frozen": [], "table_grads": [], "clipped": [], "stages": []}
    seen["held"] = []
    for step in range(STEPS):
        exact = model.state_dict()
        before = {name: exact[name].clone() for name, p in model.named_parameters() if not p.requires_grad}
        seen["frozen"].append(len(before))
        seen["stages"].append(growth.stage)
        for part in range(ACCUMULATION):
            with accelerator.accumulate(wrapped):
                accelerator.backward(family.loss(wrapped, seeds(step, part)[rank]))
                if accelerator.sync_gradients:
                    seen["table_grads"].append(equal_on_ranks(table.grad) and bool(table.grad.any()))
                    norm = accelerator.clip_grad_norm_(growth.parameters(), CLIP)
                    seen["clipped"].append(float(norm) > CLIP)
                optimizer.step()
                optimizer.zero_grad()
                if accelerator.sync_gradients:
                    growth.step()
        named = dict(model.named_parameters())
        seen["held"] += [name for name, p in named.items() if not p.requires_grad and p in optimizer.optimizer.state]
        exact = model.state_dict()
        seen["moved"] += [name for name, value in before.items() if not torch.equal(exact[name], value)]
        state = [*exact.items(), ("table", table), ("average", growth.stage_embedding.average)]
        seen["unequal"] += [f"step {step}: {name}" for name in unequal_on_ranks(state)]
    growth.fold(accelerator.unwrap_model(wrapped))
    weights = weights_of(model, growth)
    accelerator._custom_objects.clear()
    accelerator.free_memory()
    return seen, weights


def corrupted(accelerator: Accelerator) -> dict[str, Any]:
    """Rank 1 loses a bit of one weight; both ranks must say so at the next growth, at loading and at the end."""
    family, said = BY_ID["unet2d"], {}
    for when in ("step", "load", "end"):
        model = family.build().train()
        growth = GrowthScheduler(model, config("suffix"), accelerator)
        wrapped, _ = accelerator.prepare(model, optimizer_of(growth))
        growth.prepare(wrapped, num_training_steps=3)
        if when == "end":
            growth.step(), growth.step()
        if accelerator.process_index == 1:
            with torch.no_grad():
                model.conv_in.bias[0] += 1e-3
        act = growth.step if when != "load" else lambda g=growth: g.load_state_dict(g.state_dict())
        said[when] = refusal(act)
        accelerator._custom_objects.clear()
        accelerator.free_memory()
    return said


def count_gradients(calls: list[int], bucket):  # no annotation: DDP refuses one that is a string
    calls.append(len(bucket.gradients()))
    work = dist.all_reduce(bucket.buffer().div_(RANKS), async_op=True).get_future()
    return work.then(lambda future: future.value()[0])


def rebuilt(accelerator: Accelerator) -> dict[str, Any]:
    """A reducer that the user configured, over three stages: its settings, and how many gradients it sent."""
    rank, family, calls = accelerator.process_index, BY_ID["unet2d"], []
    model = family.build().train()
    growth = GrowthScheduler(model, GrowthConfig(num_stages=3, order="suffix", direction="unfreeze"), accelerator)
    wrapped, optimizer = accelerator.prepare(model, optimizer_of(growth))
    wrapped.register_comm_hook(calls, count_gradients)
    growth.prepare(wrapped, num_training_steps=3)
    sent, open_now, kept, equal = [], [], [], []
    for step in range(3):
        calls.clear()
        accelerator.backward(family.loss(wrapped, 10 * step + rank) * ACCUMULATION)
        optimizer.step()
        optimizer.zero_grad()
        sent.append(sum(calls))
        open_now.append(sum(p.requires_grad for p in model.parameters()))
        kept.append([wrapped.find_unused_parameters, wrapped.gradient_as_bucket_view, len(wrapped._comm_hooks)])
        equal.append(not unequal_on_ranks(model.named_parameters()))
        growth.step()
    accelerator._custom_objects.clear()
    accelerator.free_memory()
    return {"sent": sent, "open": open_now, "kept": kept, "equal": equal}


def averaged(accelerator: Accelerator) -> dict[str, Any]:
    """A power-function average of model and stage embedding, at which blocks freeze."""
    rank = accelerator.process_index
    family = BY_ID["pixart"]
    model = family.build().train()
    growth = GrowthScheduler(model, GrowthConfig(num_stages=3), accelerator)
    wrapped, optimizer = accelerator.prepare(model, optimizer_of(growth))
    growth.prepare(wrapped, num_training_steps=STEPS)
    average = PowerAverage(wrapped, growth=growth, accelerator=accelerator, widths=[0.2], freeze_at_average=True)
    unequal = []
    for step in range(STEPS):
        accelerator.backward(family.loss(wrapped, 10 * step + rank))
        optimizer.step()
        optimizer.zero_grad()
        average.step()
        growth.step()
        unequal += unequal_on_ranks(average.averages.items())
    average.copy_to()
    growth.fold(accelerator.unwrap_model(wrapped))
    unequal += unequal_on_ranks(model.named_parameters())
    accelerator._custom_objects.clear()
    accelerator.free_memory()
    return {"unequal": unequal, "steps": average.steps, "names": len(average.averages)}


def bare_model_refused(accelerator: Accelerator) -> str:
    """In a plain loop with two processes, the model must come wrapped."""
    model = BY_ID["unet2d"].build()
    return refusal(lambda: GrowthScheduler(model, config("suffix")).prepare(model, num_training_steps=3))


def main() -> None:
    torch.set_num_threads(1)
    cases = [case.split("-") for case in sys.argv[2].split(",")]
    # The first rank is enough: the weights of all are compared bit for bit.
    first = os.environ["RANK"] == "0"
    references = [reference(BY_ID[family], order) for family, order in cases] if first else []
    plain = DistributedDataParallelKwargs(find_unused_parameters=False)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION, kwargs_handlers=[plain])
    result: dict[str, Any] = {"ranks": accelerator.num_processes}
    for number, (family, order) in enumerate(cases):
        seen, weights = together(BY_ID[family], order, accelerator)
        seen |= {"error": worst(weights, references[number])} if first else {}
        result[f"{family}-{order}"] = seen
    if "alone" in sys.argv:
        finish(result)
    result["averaged"] = averaged(accelerator)
    result["corrupted"] = corrupted(accelerator)
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)
    result["rebuilt"] = rebuilt(accelerator)
    result["bare"] = bare_model_refused(accelerator)
    finish(result)


if __name__ == "__main__":
    main()
