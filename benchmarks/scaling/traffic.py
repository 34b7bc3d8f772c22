"""Bytes and FLOPs of one training step in every stage, exactly: of the parameters and calls of the real model.

DDP all-reduces the gradients of what trains; before every forward pass rank 0 also sends all buffers. FSDP2 gathers
every group of parameters before its forward pass, gathers it again before its backward pass, and reduce-scatters the
gradients of what trains; a frozen front has no backward pass. `two_ranks.py` counts the same on two real processes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules that all benchmarks share

from models import Published

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth.flops import flop_counter


FP32 = 4
ADAM = 2  # exp_avg and exp_avg_sq, as wide as the parameter
STAGES = 4


@dataclass(frozen=True)
class Step:
    """One training step of a stage.

    Attributes:
        groups: Per FSDP group (its module's name, "" for the root) the shape of every parameter and whether it trains.
        calls: The groups in the order in which their forward passes ended, and whether a backward pass will follow.
        forward: FLOPs of the forward pass, of a batch of one.
        backward: FLOPs of the backward pass, of a batch of one.
        embedding: Trained numbers outside of the model (the stage embedding).
        buffers: Bytes of the model's buffers.
        stay: Groups that stay gathered after their forward pass.
    """

    groups: dict[str, list[tuple[tuple[int, ...], bool]]]
    calls: list[tuple[str, bool]]
    forward: float
    backward: float
    embedding: int
    buffers: int
    stay: tuple[str, ...] = ("",)

    def trained(self) -> int:
        """Numbers of the model that train."""
        return sum(math.prod(shape) for group in self.groups.values() for shape, trains in group if trains)

    def total(self) -> int:
        """Numbers of the model."""
        return sum(math.prod(shape) for group in self.groups.values() for shape, _ in group)

    def all_reduced(self) -> int:
        """Bytes of gradients (float32) that DDP all-reduces."""
        return FP32 * (self.trained() + self.embedding)

    def sent_by_ddp(self, ranks: int) -> float:
        """Bytes that every rank sends in a ring all-reduce of the gradients, and a broadcast of the buffers."""
        return (ranks - 1) / ranks * (2 * self.all_reduced() + self.buffers)

    def sent_by_fsdp(self, ranks: int, width: int) -> float:
        """Bytes that every rank sends in all gathers and scatters of FSDP2."""
        forward, backward = self.gathered(ranks, width)
        return (ranks - 1) / ranks * sum(forward + backward + self.scattered(ranks, width))

    def gathered(self, ranks: int, width: int) -> tuple[list[int], list[int]]:
        """Bytes of every all-gather of FSDP2 in the forward and in the backward pass, at `width` bytes a number.

        Every call gathers its group, except that those that `stay` need it once. In the backward pass
        a call also prefetches the one before it, whether or not that one will run.
        """
        size = {name: width * sum(padded(s, ranks) for s, _ in group) for name, group in self.groups.items()}
        wanted: dict[str, None] = {}
        for index, (name, live) in enumerate(self.calls):
            if live:
                before = [self.calls[index - 1][0]] if index else []
                wanted.update(dict.fromkeys([*before, name]))
        forward = [size[name] for name, _ in self.calls]
        return forward, [size[name] for name in wanted if name not in self.stay]

    def scattered(self, ranks: int, width: int) -> list[int]:
        """Bytes of every reduce-scatter of FSDP2."""
        sums = [sum(padded(s, ranks) for s, trains in group if trains) for group in self.groups.values()]
        return [width * count for count in sums if count]

    def reduced_by_hsdp(self, shards: int, width: int) -> list[int]:
        """Bytes of every all-reduce of HSDP over the replicas: of the shard that a reduce-scatter has left."""
        return [size // shards for size in self.scattered(shards, width)]

    def sent_by_hsdp(self, shards: int, replicas: int, width: int) -> float:
        """Bytes that every rank sends where `shards` ranks cut a model between them, one of several replicas."""
        between = sum(self.reduced_by_hsdp(shards, width))
        return self.sent_by_fsdp(shards, width) + 2 * (replicas - 1) / replicas * between

    def state(self, ranks: int = 1) -> int:
        """Bytes of weights, gradients and Adam state on one rank, in float32; sharded over `ranks`."""
        numbers = [(padded(s, ranks) // ranks, trains) for group in self.groups.values() for s, trains in group]
        held = sum(count * (1 + (1 + ADAM) * trains) for count, trains in numbers)
        return FP32 * (held + (1 + 1 + ADAM) * self.embedding * (ranks == 1))


def padded(shape: tuple[int, ...], ranks: int) -> int:
    """Numbers of a parameter after FSDP2 has cut it into equal shards along its first dimension."""
    return math.ceil(shape[0] / ranks) * ranks * math.prod(shape[1:]) if shape else 1


def stages(published: Published, order: str, tiny: bool = False) -> Iterator[Step]:
    """The steps of all stages of the default configuration, on the meta device; the last one trains everything."""
    with torch.device("meta"):
        model = published.build(tiny).train()
        inputs = published.inputs(model.config)
        growth = GrowthScheduler(model, GrowthConfig(num_stages=STAGES, order=order, direction="unfreeze"))  # type: ignore[arg-type]
    growth.prepare(model, num_training_steps=STAGES)
    for stage in range(STAGES):
        yield record(model, published.wrap, inputs, growth.parameters())
        if stage < STAGES - 1:
            growth.step()


def record(
    model: nn.Module, wrap: tuple[str, ...], inputs: dict[str, Any], parameters: Iterable[nn.Parameter]
) -> Step:
    """One forward and backward pass as the flags of all `parameters` are now, the model's and those beside it."""
    inside = {id(parameter) for parameter in model.parameters()}
    outside = [parameter for parameter in parameters if id(parameter) not in inside and parameter.requires_grad]
    groups, calls = cut_groups(model, wrap), []
    with watched(model, groups, calls), flop_counter() as counter:
        output = model(**inputs, return_dict=False)[0]
        forward = counter.get_total_flops()
        output.backward(torch.empty_like(output))
    shapes = {name: [(tuple(p.shape), p.requires_grad) for p in group] for name, group in groups.items()}
    backward = counter.get_total_flops() - forward
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    return Step(shapes, calls, float(forward), float(backward), sum(p.numel() for p in outside), buffers)


def cut_groups(model: nn.Module, wrap: tuple[str, ...]) -> dict[str, list[nn.Parameter]]:
    """Per module that is wrapped by class or name, and "" for the rest, what `fully_shard` puts into one group."""
    wrapped = [name for name, module in model.named_modules() if {name, type(module).__name__} & set(wrap)]
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in ["", *wrapped]}
    for name, parameter in model.named_parameters():
        owner = max((group for group in wrapped if name.startswith(group + ".")), key=len, default="")
        groups[owner].append(parameter)
    return groups


@contextmanager
def watched(model: nn.Module, groups: dict[str, Any], calls: list[tuple[str, bool]]) -> Iterator[None]:
    """While it is open, the end of every group's forward pass is appended to `calls`."""

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            live = any(isinstance(value, Tensor) and value.requires_grad for value in outputs)
            calls.append((name, live))

        return hook

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in groups]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
