"""Growth of parameters that FSDP2 shards over two ranks; started by `test_fsdp.py`."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from rank_tools import (
    BY_ID,
    Family,
    alone,
    equal_on_ranks,
    finish,
    local,
    optimizer_of,
    refusal,
    same,
    seeds,
    sent,
    weights_of,
    whole,
    worst,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from autoprog_diffusion import GrowthConfig, GrowthScheduler


STEPS, ACCUMULATION = 6, 2
CLIP = 0.3  # below the gradient norms of these losses, so that clipping acts
# DiT's first block lends its timestep embedder to the model, which calls it from outside of the block.
GROUPS = {"dit": ("transformer_blocks.0.norm1.emb", "transformer_blocks."), "unet2d": ("down_blocks.", "up_blocks.")}


def shard(family: Family, **settings: Any) -> nn.Module:
    """A model whose blocks are groups of their own, and the rest is one more."""
    model = family.build().train()
    for start in GROUPS[family.id]:
        exact = [name for name, _ in model.named_modules() if name == start]
        names = exact or [f"{start}{index}" for index in range(len(model.get_submodule(start[:-1])))]
        for name in names:
            fully_shard(model.get_submodule(name), **settings)
    return fully_shard(model, **settings)


def config(order: str) -> GrowthConfig:
    direction = order if order in ("freeze", "window") else "unfreeze"
    settings = {"order": "suffix" if direction == order else order, "direction": direction}
    return GrowthConfig(num_stages=3, **settings, stage_embedding_init="normal", ema_decay=0.9)


def averaged(family: Family, order: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The whole training in one process, with an EMA that is copied back before the fold."""
    kept: dict[str, EMAModel] = {}

    def follow(step: int, growth: GrowthScheduler) -> None:
        ema = kept.setdefault("ema", EMAModel(family.build().parameters(), decay=0.9))
        ema.step(growth.ema_parameters())

    model, growth = alone(family, config(order), STEPS, ACCUMULATION, CLIP, follow)
    kept["ema"].copy_to(model.parameters())
    growth.fold(model)
    return model, weights_of(model, growth)


def bytes_of(tensors: list[Tensor]) -> int:
    return sum(local(tensor).numel() * tensor.element_size() for tensor in tensors)


def together(
    family: Family, order: str, reference: tuple[nn.Module, dict[str, Tensor]] | None, accelerator: Accelerator
) -> dict[str, Any]:
    """Train on two ranks with sharded parameters; what was seen, stage by stage."""
    model = shard(family)
    ema = EMAModel(model.parameters(), decay=0.9)
    growth = GrowthScheduler(model, config(order))
    optimizer = optimizer_of(growth)
    glance(family, model)
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    table, rank = growth.stage_embedding.table, dist.get_rank()
    names = ("stages", "frozen", "moved", "held", "grads", "table", "clipped", "memory", "sent")
    seen: dict[str, Any] = {name: [] for name in names}
    for step in range(STEPS):
        model.reshard()  # after the glance; the passes below would not mind
        named = dict(model.named_parameters())
        rest = {name: local(p).clone() for name, p in named.items() if not p.requires_grad}
        seen["stages"].append(growth.stage)
        seen["frozen"].append(len(rest))

        def backward(step: int = step) -> None:
            for part in range(ACCUMULATION):
                model.set_requires_gradient_sync(part == ACCUMULATION - 1)
                (family.loss(model, seeds(step, part)[rank]) / ACCUMULATION).backward()
                seen["table"].append(equal_on_ranks(table.grad) and bool(table.grad.any()))

        seen["sent"].append(sent(backward) if step % 2 == 0 else backward())  # once a stage
        norm = accelerator.clip_grad_norm_(growth.parameters(), CLIP)
        seen["clipped"].append(float(whole(norm)) > CLIP)
        seen["grads"].append([name for name, p in named.items() if (p.grad is None) == p.requires_grad])
        optimizer.step()
        seen["memory"].append(memory(model, optimizer))
        optimizer.zero_grad()
        ema.step(growth.ema_parameters())
        glance(family, model)
        growth.step()
        model.reshard()
        named = dict(model.named_parameters())
        seen["moved"] += [name for name, value in rest.items() if not torch.equal(local(named[name]), value)]
        seen["held"].append([name for name in rest if named[name] in optimizer.state])
    ema.copy_to(model.parameters())
    glance(family, model)
    growth.fold(model)
    weights = weights_of(model, growth)
    plain = gathered(model)
    if reference is not None:
        seen |= {"error": worst(weights, reference[1])}
        seen |= plain_checkpoint(family, order, plain, reference[0])
    return seen


def glance(family: Family, model: nn.Module) -> None:
    """A validation pass: it leaves the root's parameters gathered, in place of the sharded ones."""
    with torch.no_grad():
        family.loss(model, 5)


def memory(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes on this rank, between the optimizer's step and `zero_grad`, and those of the shards that train."""
    parameters = list(model.parameters())
    states = [value for p in parameters for value in optimizer.state.get(p, {}).values() if value.dim()]
    return {
        "parameters": bytes_of(parameters),
        "gradients": bytes_of([p.grad for p in parameters if p.grad is not None]),
        "optimizer": bytes_of(states),
        "trains": bytes_of([p for p in parameters if p.requires_grad]),
        "reduced": sum(padded(p) for p in parameters if p.requires_grad),
        "numel": sum(p.numel() for p in parameters),
    }


def padded(parameter: Tensor) -> int:
    """Values of a gradient as it is reduced: its first dimension is filled up to a multiple of the ranks."""
    ranks, first = dist.get_world_size(), parameter.shape[0]
    return -(-first // ranks) * ranks * (parameter.numel() // first)


def gathered(model: nn.Module) -> dict[str, Any]:
    """The whole weights, on the first rank."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def plain_checkpoint(family: Family, order: str, weights: dict[str, Any], reference: nn.Module) -> dict[str, float]:
    """The folded model as a plain checkpoint of Diffusers, against the one trained in one process."""
    plain, folder = family.build(), f"{sys.argv[1]}/{family.id}-{order}"
    plain.load_state_dict(weights)
    plain.save_pretrained(folder)
    loaded = type(plain).from_pretrained(folder)
    inputs = family.inputs(7, 2)
    with torch.no_grad():
        ours, theirs = (family.output(m.eval(), inputs) for m in (loaded, reference))
    return {"output error": ((ours - theirs).norm() / theirs.norm()).item()}


def saved_folded() -> dict[str, bool]:
    """A plain checkpoint in the middle of training, after a validation pass, and the training model after it."""
    family = BY_ID["dit"]
    model = shard(family)
    growth = GrowthScheduler(model, config("suffix"))
    growth.prepare(model, num_training_steps=3, optimizer=optimizer_of(growth))
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    name, row = f"{growth.stage_embedding.points[0]}.bias", growth.stage_embedding.average[0].detach()
    before = get_model_state_dict(model, options=options)
    glance(family, model)
    with growth.folded(model):
        inside = get_model_state_dict(model, options=options)
    after = get_model_state_dict(model, options=options)
    if dist.get_rank():
        return {"folded": True, "restored": True}
    return {"folded": torch.equal(inside[name], before[name] + row), "restored": same(after, before)}


def half_precision() -> list[list[str]]:
    """Types of the gradients in every stage, where passes run in bfloat16 and reductions in float32."""
    family = BY_ID["dit"]
    model = shard(family, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32))
    growth = GrowthScheduler(model, GrowthConfig(num_stages=3, order="suffix", direction="unfreeze"))
    optimizer = optimizer_of(growth)
    growth.prepare(model, num_training_steps=3, optimizer=optimizer)
    types = []
    for step in range(3):
        family.loss(model, seeds(step, 0)[dist.get_rank()]).backward()
        types.append(sorted({str(p.grad.dtype) for p in model.parameters() if p.grad is not None}))
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    return types


def refused() -> dict[str, str]:
    """A search, where the shards are known at construction and where they come later, and parked moments."""
    family, searched = BY_ID["dit"], GrowthConfig(search="zero_shot")
    later = family.build()
    growth = GrowthScheduler(later, searched)
    fully_shard(later)
    model = shard(family)
    windows = GrowthScheduler(model, GrowthConfig(direction="window", window_state="park"))
    optimizer = optimizer_of(windows)
    return {
        "parked": refusal(lambda: windows.prepare(model, num_training_steps=40, optimizer=optimizer)),
        "sharded": refusal(lambda: GrowthScheduler(shard(family), searched)),
        "sharded later": refusal(lambda: growth.prepare(later, num_training_steps=40)),
    }


def main() -> None:
    torch.set_num_threads(1)
    cases = [case.split("-") for case in sys.argv[2].split(",")]
    # The first rank is enough: what is compared was gathered on all of them.
    first = os.environ["RANK"] == "0"
    references = [averaged(BY_ID[family], order) if first else None for family, order in cases]
    accelerator = Accelerator(cpu=True)
    result: dict[str, Any] = {}
    for (family, order), reference in zip(cases, references):
        result[f"{family}-{order}"] = together(BY_ID[family], order, reference, accelerator)
    if "alone" not in sys.argv:
        result |= {"saved folded": saved_folded(), "types": half_precision(), "refused": refused()}
    finish(result)


if __name__ == "__main__":
    main()
