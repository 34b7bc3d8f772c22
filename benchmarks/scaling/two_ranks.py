"""Bytes that two real processes send in every stage; `run.py` launches it and compares with `traffic.py`.

torchrun --nproc_per_node 2 benchmarks/scaling/two_ranks.py FOLDER [MODEL ...]
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from models import MODELS, Published
from traffic import STAGES, cut_groups

from autoprog_diffusion import GrowthConfig, GrowthScheduler


CASES = [(m, order, backend) for m in MODELS for order in ("interleaved", "suffix") for backend in ("DDP", "FSDP2")]


class Sent(TorchDispatchMode):
    """Adds up the bytes of every collective while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "c10d":
            # The whole tensor: what an all-gather gives, what a reduce-scatter takes.
            tensor = args[1] if name.startswith("_reduce_scatter") else args[0]
            for part in tensor if isinstance(tensor, list) else [tensor]:
                self.bytes[name] += part.nbytes
        return func(*args, **(kwargs or {}))


def count(published: Published, order: str, backend: str) -> list[dict[str, int]]:
    """Bytes of every kind of collective per stage, of a real forward and backward pass."""
    torch.manual_seed(0)
    model = published.build(tiny=True).train()
    sharded = backend == "FSDP2"
    config = GrowthConfig(  # type: ignore[arg-type]
        num_stages=STAGES, order=order, direction="unfreeze", stage_embedding=False if sharded else None
    )
    growth = GrowthScheduler(model, config)
    if sharded:
        for name in sorted(cut_groups(model, published.wrap), key=len, reverse=True):
            fully_shard(model.get_submodule(name))
    wrapped: nn.Module = model if sharded else DistributedDataParallel(model)
    growth.prepare(wrapped, num_training_steps=STAGES)
    inputs = published.inputs(model.config)
    seen = []
    for stage in range(STAGES):
        for _ in range(3):  # FSDP2 sets itself up in the first step, DDP cuts its final buckets in the second
            with Sent() as sent:
                wrapped(**inputs, return_dict=False)[0].square().mean().backward()
            wrapped.zero_grad()
        seen.append(dict(sent.bytes))
        if stage < STAGES - 1:
            growth.step()
    return seen


def main() -> None:
    dist.init_process_group("gloo")
    folder, *names = sys.argv[1:]
    cases = [case for case in CASES if not names or case[0].name in names]
    rows = [{"model": m.name, "order": o, "backend": b, "counted": count(m, o, b)} for m, o, b in cases]
    if dist.get_rank() == 0:
        (Path(folder) / "two_ranks.json").write_text(json.dumps(rows), encoding="utf-8")
    dist.barrier()
    # Gloo's threads sometimes abort a process that ends in the ordinary way.
    os._exit(0)


if __name__ == "__main__":
    main()
