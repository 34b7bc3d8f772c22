"""What two ranks check together; `test_growth_ddp.py` launches it and reads what every rank wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from accelerate.utils import DistributedDataParallelKwargs  # noqa: E402
from settings import BY_ID, Family  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from autoprog_diffusion import GrowthConfig, GrowthScheduler  # noqa: E402
from autoprog_diffusion.growth import SyncError  # noqa: E402


CASES = [(family, order) for family in ("unet2d", "pixart") for order in ("interleaved", "suffix", "prefix")]
RANKS, STEPS, ACCUMULATION = 2, 6, 2
CLIP = 0.3  # below the gradient norms of these losses, so that clipping acts


def config(order: str) -> GrowthConfig:
    return GrowthConfig(num_stages=3, order=order, stage_embedding_init="normal", ema_decay=0.9)


def optimizer_of(growth: GrowthScheduler) -> torch.optim.Optimizer:
    # A large epsilon: Adam would blow the rounding of gradients that are zero up to the size of a step.
    return torch.optim.AdamW(growth.parameters(), lr=1e-2, weight_decay=0.1, eps=1e-3)


def seeds(step: int, part: int) -> list[int]:
    """Seeds of the batches that the ranks see in one micro-step."""
    return [1000 * step + 10 * part + rank for rank in range(RANKS)]


def weights_of(model: nn.Module, growth: GrowthScheduler) -> dict[str, Tensor]:
    """Copies of the model's weights, and of the stage embedding's table and average."""
    state = [*model.named_parameters(), *growth._embedding.state_dict().items()]
    return {name: value.detach().clone() for name, value in state}


def alone(family: Family, order: str) -> dict[str, Tensor]:
    """The same training in one process, on the concatenated batches."""
    model = family.build().train()
    growth = GrowthScheduler(model, config(order))
    optimizer = optimizer_of(growth)
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    for step in range(STEPS):
        for part in range(ACCUMULATION):
            losses = [family.loss(model, seed) for seed in seeds(step, part)]
            (sum(losses) / (RANKS * ACCUMULATION)).backward()
        nn.utils.clip_grad_norm_(growth.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    growth.fold(model)
    return {
        name: value.clone() for name, value in [*model.named_parameters(), *growth._embedding.state_dict().items()]
    }


def equal_on_ranks(value: Tensor) -> bool:
    gathered = [torch.empty_like(value) for _ in range(RANKS)]
    dist.all_gather(gathered, value.detach().contiguous())
    return all(torch.equal(gathered[0], other) for other in gathered)


def together(family: Family, order: str, accelerator: Accelerator) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Train on two ranks; what was seen, and the final weights."""
    rank = accelerator.process_index
    model = family.build().train()
    growth = GrowthScheduler(model, config(order), accelerator)
    wrapped, optimizer = accelerator.prepare(model, optimizer_of(growth))
    growth.prepare(wrapped, num_training_steps=STEPS)
    table = growth._embedding.table
    seen: dict[str, Any] = {"unequal": [], "moved": [], "frozen": [], "table_grads": [], "clipped": [], "stages": []}
    for step in range(STEPS):
        before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
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
        seen["moved"] += [name for name, value in before.items() if not torch.equal(named[name], value)]
        state = [*named.items(), ("table", table), ("average", growth._embedding.average)]
        seen["unequal"] += [f"step {step}: {name}" for name, value in state if not equal_on_ranks(value)]
    growth.fold(accelerator.unwrap_model(wrapped))
    weights = weights_of(model, growth)
    accelerator._custom_objects.clear()
    accelerator.free_memory()
    return seen, weights


def worst(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest deviation over all tensors, relative to the size of the tensor."""
    return max(((ours[n] - theirs[n]).norm() / (theirs[n].norm() + 1e-3)).item() for n in theirs)


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
        try:
            growth.load_state_dict(growth.state_dict()) if when == "load" else growth.step()
            said[when] = "nothing"
        except SyncError as error:
            said[when] = str(error)
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
    growth = GrowthScheduler(model, GrowthConfig(num_stages=3, order="suffix"), accelerator)
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
        equal.append(all(equal_on_ranks(p) for p in model.parameters()))
        growth.step()
    accelerator._custom_objects.clear()
    accelerator.free_memory()
    return {"sent": sent, "open": open_now, "kept": kept, "equal": equal}


def bare_model_refused(accelerator: Accelerator) -> str:
    """In a plain loop with two processes, the model must come wrapped."""
    model = BY_ID["unet2d"].build()
    try:
        GrowthScheduler(model, config("suffix")).prepare(model, num_training_steps=3)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main() -> None:
    torch.set_num_threads(1)
    references = {(family, order): alone(BY_ID[family], order) for family, order in CASES}
    plain = DistributedDataParallelKwargs(find_unused_parameters=False)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATION, kwargs_handlers=[plain])
    result: dict[str, Any] = {"ranks": accelerator.num_processes}
    for family, order in CASES:
        seen, weights = together(BY_ID[family], order, accelerator)
        result[f"{family}-{order}"] = {**seen, "error": worst(weights, references[family, order])}
    result["corrupted"] = corrupted(accelerator)
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)
    result["rebuilt"] = rebuilt(accelerator)
    result["bare"] = bare_model_refused(accelerator)
    Path(sys.argv[1], f"rank{accelerator.process_index}.json").write_text(json.dumps(result))
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
