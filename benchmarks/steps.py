"""A training step at one stage of growth: its seconds, FLOPs and bytes, for every script that compares stages."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoprog_diffusion import GrowthConfig, GrowthPlan, GrowthScheduler, GrowthWarning, Stage
from autoprog_diffusion.growth import find_adapter, select_blocks
from autoprog_diffusion.search.recorded_calls import map_tensors, output_tensor
from autoprog_diffusion.training.measure import counted_flops, peak_memory, synchronize


ORDERS = ("interleaved", "suffix", "prefix")
LEVELS = (0.25, 0.5, 0.75)


def release(growth: GrowthScheduler, model: nn.Module) -> None:
    """Fold in the middle of the plan: a benchmark measures one stage, and goes on to the next."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GrowthWarning)
        growth.fold(model)


@dataclass(frozen=True)
class Candidate:
    """What a stage trains, and how large its inputs are.

    Attributes:
        name: For tables.
        blocks: Indices of the blocks that train.
        resolution: Fraction of the side of the inputs.
        batch: Times the inputs' own batch.
    """

    name: str
    blocks: tuple[int, ...]
    resolution: float = 1.0
    batch: int = 1


@dataclass(frozen=True)
class Bytes:
    """What a step holds beside the weights, which every stage holds.

    Attributes:
        activations: Saved for the backward pass, every storage once; weights are not counted.
        gradients: Of what trains.
        optimizer: Its state.
    """

    activations: int
    gradients: int
    optimizer: int


def candidates(
    model: nn.Module, resolutions: Sequence[float] = (), levels: Sequence[float] = LEVELS
) -> list[Candidate]:
    """Full training, every level of every order, and resolutions: alone, with the smallest suffix, with more images.

    Twice the batch at a resolution of 0.75, four times at 0.5: about as many pixels as the full inputs.
    """
    count = len(find_adapter(model).layout(model).blocks)
    everything, suffix = tuple(range(count)), select_blocks("suffix", count, levels[0])
    found = [Candidate("full", everything)]
    found += [Candidate(f"{o} {level:g}", select_blocks(o, count, level)) for o in ORDERS for level in levels]
    found += [Candidate(f"full, resolution {size:g}", everything, size) for size in resolutions]
    found += [Candidate(f"suffix {levels[0]:g}, resolution {s:g}", suffix, s) for s in resolutions]
    batches = [(size, round(1 / size**2)) for size in resolutions]
    return found + [Candidate(f"full, resolution {s:g}, batch x{n}", everything, s, n) for s, n in batches]


def inputs_of(candidate: Candidate, inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs at a candidate's resolution and batch.

    Images (N, C, H, W) have sides of a fraction; of packed tokens (N, T, C) the square of it is kept.
    """
    count = len(inputs["timestep"])
    if candidate.batch > 1:
        inputs = map_tensors(inputs, lambda x: torch.cat([x] * candidate.batch) if x.dim() and len(x) == count else x)
    resolution = candidate.resolution
    if resolution == 1.0:
        return inputs
    if "img_ids" in inputs:
        kept = round(len(inputs["img_ids"]) * resolution**2)
        return {**inputs, "hidden_states": inputs["hidden_states"][:, :kept], "img_ids": inputs["img_ids"][:kept]}

    def smaller(value: Tensor) -> Tensor:
        return F.interpolate(value, scale_factor=resolution, mode="nearest-exact") if value.dim() == 4 else value

    return map_tensors(inputs, smaller)


class Steps:
    """Training steps of one model under changing candidates, each visited for a few steps at a time.

    Args:
        model: The denoiser, on its device.
        inputs: Keyword arguments of a forward pass at full resolution.
        autocast: Whether the forward pass runs under bfloat16 autocast.
    """

    def __init__(self, model: nn.Module, inputs: dict[str, Any], autocast: bool = False) -> None:
        self.model, self.inputs, self.autocast = model, inputs, autocast
        self.device = next(model.parameters()).device

    def gradients(self, inputs: dict[str, Any] | None = None) -> None:
        """Forward and backward pass of a mean square, on the full inputs by default."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            output = output_tensor(self.model(**(self.inputs if inputs is None else inputs)))
        output.float().square().mean().backward()

    @contextmanager
    def at(self, candidate: Candidate) -> Iterator[tuple[torch.optim.Optimizer, dict[str, Any]]]:
        """Inside, only what the candidate names trains; yields an optimizer whose state exists, and the inputs."""
        inputs = inputs_of(candidate, self.inputs)
        growth = GrowthScheduler(self.model, GrowthConfig(num_stages=1, stage_embedding=False))
        plan = GrowthPlan(len(growth.layout.blocks), 1, (Stage(0, candidate.blocks),))
        # A rate of zero: the weights are the same at every visit.
        optimizer = torch.optim.AdamW(growth.parameters(), lr=0.0)
        growth.prepare(self.model, num_training_steps=1, plan=plan, optimizer=optimizer)
        try:
            self.gradients(inputs)
            optimizer.step()
            optimizer.zero_grad()
            yield optimizer, inputs
        finally:
            release(growth, self.model)
            optimizer.zero_grad()

    def times(self, candidate: Candidate, repeats: int, clock: Callable[[], float]) -> list[tuple[float, float]]:
        """Seconds of forward and backward pass, and of the optimizer, per step."""
        found = []
        with self.at(candidate) as (optimizer, inputs):
            for _ in range(repeats):
                marks = [self._read(clock)]
                self.gradients(inputs)
                marks.append(self._read(clock))
                optimizer.step()
                optimizer.zero_grad()
                marks.append(self._read(clock))
                found.append((marks[1] - marks[0], marks[2] - marks[1]))
        return found

    def flops(self, candidate: Candidate) -> int:
        """FLOPs of forward and backward pass, by PyTorch's counter."""
        with self.at(candidate) as (_, inputs):
            return counted_flops(lambda: self.gradients(inputs))

    def bytes(self, candidate: Candidate) -> Bytes:
        """What a step holds."""
        weights = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        saved: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            self.at(candidate) as (optimizer, inputs),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            self.gradients(inputs)
            gradients = sum(p.grad.nbytes for p in self.model.parameters() if p.grad is not None)
            states = [value for state in optimizer.state.values() for value in state.values()]
            return Bytes(sum(saved.values()), gradients, sum(value.nbytes for value in states))

    def peak(self, candidate: Candidate) -> int | None:
        """Peak bytes allocated in a step on a CUDA device, weights included; None elsewhere."""
        if self.device.type != "cuda":
            return None
        with self.at(candidate) as (optimizer, inputs):
            torch.cuda.empty_cache()
            peak_memory(self.device)
            self.gradients(inputs)
            optimizer.step()
            return peak_memory(self.device)

    def _read(self, clock: Callable[[], float]) -> float:
        synchronize(self.device)
        return clock()


def measure(steps: Steps, found: Sequence[Candidate], rounds: int, repeats: int) -> list[dict[str, Any]]:
    """One row per candidate; `found[0]` is what the ratios are against, and the candidates take turns.

    Seconds are those of the fastest step, since other jobs only add to it: of this process's CPU where the model is on
    the CPU, else of the clock.
    """
    clock = time.process_time if steps.device.type == "cpu" else time.perf_counter
    times: dict[str, list[tuple[float, float]]] = {candidate.name: [] for candidate in found}
    for _ in range(rounds):
        for candidate in (*found, found[0]):  # what all is compared with, twice
            times[candidate.name] += steps.times(candidate, repeats, clock)
    rows = []
    for candidate in found:
        passes, update = (min(pair[k] for pair in times[candidate.name]) for k in range(2))
        held = steps.bytes(candidate)
        row = {"candidate": candidate.name, "blocks": len(candidate.blocks), "resolution": candidate.resolution}
        row |= {"batch": candidate.batch}
        row |= {"passes_s": passes, "optimizer_s": update, "step_s": passes + update}
        row |= {"flops": steps.flops(candidate), **asdict(held), "held": sum(asdict(held).values())}
        rows.append(row | {"peak": steps.peak(candidate)})
    return [with_ratios(row, rows[0]) for row in rows]


def with_ratios(row: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    """The row with its shares of full training, and how far the step is above its share of the FLOPs."""
    shares = {f"{key}_share": row[f"{key}_s"] / full[f"{key}_s"] for key in ("passes", "step")}
    shares |= {f"{key}_share": row[key] / full[key] for key in ("flops", "held")}
    shares["peak_share"] = row["peak"] / full["peak"] if row["peak"] else None
    above = {
        f"{key}above_bound": shares[f"{key or 'step_'}share"] / shares["flops_share"] - 1 for key in ("", "passes_")
    }
    return {**row, **shares, **above}
