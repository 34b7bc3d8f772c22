"""What the scripts of this folder share; they run outside of pytest, on every rank of a launch."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from settings import BY_ID, Family  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from autoprog_diffusion import GrowthConfig, GrowthScheduler  # noqa: E402


__all__ = ["BY_ID", "Family"]


def optimizer_of(growth: GrowthScheduler) -> torch.optim.Optimizer:
    parameters = growth.parameter_groups() if growth.config.rewarm_steps else growth.parameters()
    # A large epsilon: Adam would blow the rounding of gradients that are zero up to the size of a step.
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1, eps=1e-3)


def seeds(step: int, part: int, ranks: int = 2) -> list[int]:
    """Seeds of the batches that the ranks see in one micro-step."""
    return [1000 * step + 10 * part + rank for rank in range(ranks)]


def alone(
    family: Family,
    config: GrowthConfig,
    steps: int,
    accumulation: int = 1,
    clip: float | None = None,
    after: Callable[[int, GrowthScheduler], None] | None = None,
) -> tuple[nn.Module, GrowthScheduler]:
    """Training in one process on the batches of both ranks, up to the fold; `after(step, growth)` ends each step."""
    model = family.build().train()
    growth = GrowthScheduler(model, config)
    optimizer = optimizer_of(growth)
    growth.prepare(model, num_training_steps=steps, optimizer=optimizer)
    for step in range(steps):
        for part in range(accumulation):
            losses = [family.loss(model, seed) for seed in seeds(step, part)]
            (sum(losses) / (len(losses) * accumulation)).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(growth.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
        if after is not None:
            after(step, growth)
        growth.step()
    return model, growth


def whole(tensor: Tensor) -> Tensor:
    """A copy of a tensor (gathered from its shards, where it has some)."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach()


def weights_of(model: nn.Module, growth: GrowthScheduler) -> dict[str, Tensor]:
    """Copies of the model's weights, and of the stage embedding's table (and average)."""
    extra = [] if growth.stage_embedding is None else growth.stage_embedding.state_dict().items()
    return {name: whole(value) for name, value in [*model.named_parameters(), *extra]}


def shards_of(model: nn.Module, growth: GrowthScheduler) -> dict[str, Tensor]:
    """Copies of what this rank holds of `weights_of`; equal on every rank means equal as a whole."""
    extra = [] if growth.stage_embedding is None else growth.stage_embedding.state_dict().items()
    return {name: local(value).clone() for name, value in [*model.named_parameters(), *extra]}


def worst(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest deviation over all tensors, relative to the size of the tensor."""
    return max(((ours[n] - theirs[n]).norm() / (theirs[n].norm() + 1e-3)).item() for n in theirs)


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Whether two sets of weights are equal bit for bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def equal_on_ranks(value: Tensor) -> bool:
    gathered = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, value.detach().contiguous())
    return all(torch.equal(gathered[0], other) for other in gathered)


def unequal_on_ranks(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that differ by a bit between the ranks; all of them are gathered at once."""
    tensors = dict(named)
    parts = [value.detach().contiguous().flatten().view(torch.uint8) for value in tensors.values()]
    flat = torch.cat(parts)
    gathered = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, flat)
    sizes = [part.numel() for part in parts]
    by_rank = [whole.split(sizes) for whole in gathered]
    first = by_rank[0]
    return [
        name
        for index, name in enumerate(tensors)
        if not all(torch.equal(first[index], other[index]) for other in by_rank)
    ]


def refusal(action: Callable[[], Any]) -> str:
    """Class and message of what an action raises."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - the test says which one it expects
        return f"{type(error).__name__}: {error}"
    return "nothing"


def sent(action: Callable[[], Any]) -> list[int]:
    """Sizes, in values, of all that an action reduced over ranks, whoever called for it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        action()
    return sorted(torch.Size(shape).numel() for shape in _reduced(profile))


def _reduced(profile: Any) -> Iterator[list[int]]:
    # The raw events: building torch's tree of them takes seconds.
    for event in profile.profiler.kineto_results.events():
        if event.name().startswith("gloo:") and "reduce" in event.name():
            yield event.shapes()[0]


def finish(result: dict[str, Any]) -> None:
    """Write what this rank saw, and leave."""
    Path(sys.argv[1], f"rank{dist.get_rank()}.json").write_text(json.dumps(result))
    dist.barrier()
    # Gloo's threads sometimes abort a process that ends in the ordinary way.
    os._exit(0)
