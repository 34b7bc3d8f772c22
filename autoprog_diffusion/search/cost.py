"""What a step of any candidate costs: measured or counted once per resolution, then added up."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.flops import flop_counter
from autoprog_diffusion.growth.frozen_front import NoGradRegion
from autoprog_diffusion.growth.units import Layout, set_trainable, trainable_names

from .recorded_calls import RecordedCall
from .unit_timer import INPUTS, OUTPUTS, device_clock, run_segments


@dataclass(frozen=True)
class UnitCosts:
    """Cost of every unit in one unit of measure (seconds, or FLOPs), by name.

    Attributes:
        forward: f_u.
        input_gradient: d_u, of the backward pass that only carries the gradient through.
        weight_gradient: w_u, what training the unit's own parameters adds.
        update: Of the optimizer on the unit's parameters; and of their communication.
        cut: For blocks asked about, by name, the backward cost of every unit when that block is the first to train
            and all after it do too: no gradient of its input is wanted then, nor of what the frozen embedders feed.
    """

    forward: dict[str, float]
    input_gradient: dict[str, float]
    weight_gradient: dict[str, float]
    update: dict[str, float]
    cut: dict[str, dict[str, float]] = field(default_factory=dict)

    def step(self, layout: Layout, blocks: Iterable[int]) -> float:
        """Cost of one step that trains `blocks`, added up (design, section 5).

        All forward passes, input gradients back to the first trained block, weight gradients and updates of what
        trains.
        """
        chosen = sorted(blocks)
        first = chosen[0] if chosen else len(layout.blocks)
        live = [unit.name for unit in layout.blocks[first:]] + [OUTPUTS]
        trained = {layout.blocks[index].name for index in chosen} | {OUTPUTS}
        if first == 0:
            live, trained = [*live, INPUTS], trained | {INPUTS}
        cut = self.cut.get(layout.blocks[first].name) if 0 < first < len(layout.blocks) else None
        total = sum(self.forward.values()) + sum(self.update.get(name, 0.0) for name in trained)
        for name in live:
            weight = self.weight_gradient.get(name, 0.0)
            if cut is not None and name == OUTPUTS:
                total += cut.get(name, 0.0)
                continue
            through = self.input_gradient.get(name, 0.0) if cut is None else max(0.0, cut.get(name, 0.0) - weight)
            total += through + (weight if name in trained else 0.0)
        return total


def count_costs(model: nn.Module, layout: Layout, call: RecordedCall, firsts: Iterable[int] = ()) -> UnitCosts:
    """FLOPs of every unit by PyTorch's exact counter; deterministic. Run it inside `probe.leaving_no_trace`.

    Args:
        model: The bare model.
        layout: Its units.
        call: A full training batch.
        firsts: Indices of blocks that are the first to train in some candidate; each takes one more step.
    """
    with flop_counter() as counter:

        def clock() -> float:
            return float(counter.get_total_flops())

        forward, total, through = _two_steps(model, layout, call, clock)
        cut = _cut_steps(model, layout, call, clock, firsts)
    return UnitCosts(forward, through, _difference(total, through), {}, cut)


def measure_costs(
    model: nn.Module,
    layout: Layout,
    call: RecordedCall,
    firsts: Iterable[int] = (),
    *,
    repeats: int = 5,
    bandwidth: float | None = None,
) -> UnitCosts:
    """Seconds of every unit: medians over repeated steps on a recorded batch. Run it in `probe.leaving_no_trace`.

    Args:
        model: The bare model.
        layout: Its units.
        call: A full training batch.
        firsts: Indices of blocks that are the first to train in some candidate.
        repeats: Steps per setting, after one that is not counted.
        bandwidth: Bytes per second of a gradient all-reduce; None for one process.
    """
    device = call.gradient.device
    clock = device_clock(device, time.perf_counter)
    runs = [_two_steps(model, layout, call, clock) for _ in range(repeats + 1)][1:]
    forward, total, through = (_medians([run[k] for run in runs]) for k in range(3))
    cuts = [_cut_steps(model, layout, call, clock, firsts) for _ in range(repeats)]
    cut = {name: _medians([run[name] for run in cuts]) for name in cuts[0]}
    update = {unit.name: seconds for unit, seconds in zip(layout.units, _update_seconds(model, layout, device))}
    if bandwidth is not None:
        sizes = dict(model.named_parameters())
        for unit in layout.units:
            update[unit.name] += sum(sizes[n].numel() * sizes[n].element_size() for n in unit.parameters) / bandwidth
    return UnitCosts(forward, through, _difference(total, through), update, cut)


def _two_steps(
    model: nn.Module, layout: Layout, call: RecordedCall, clock: Any
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Forward, full backward, and the backward that trains no block but runs through all of them."""
    everything = layout.names
    set_trainable(model, everything)
    forward, total = run_segments(model, layout, call, clock)
    ends = trainable_names(layout, [0]) - set(layout.blocks[0].parameters)
    set_trainable(model, ends)
    # Where neither end trains (LoRA), what goes in takes the gradient all the way instead.
    _, through = run_segments(model, layout, call if ends else call.differentiable(), clock)
    set_trainable(model, everything)
    # Inputs and outputs train in both: their share counts as weight gradient, since it comes and goes with them.
    for name in (INPUTS, OUTPUTS):
        through[name] = 0.0
    return forward, total, through


def _cut_steps(
    model: nn.Module, layout: Layout, call: RecordedCall, clock: Any, firsts: Iterable[int]
) -> dict[str, dict[str, float]]:
    """Backward cost of every unit, for every block in `firsts`, when all before that block runs without gradient."""
    everything = layout.names
    region, cut = NoGradRegion(), {}
    try:
        for first in sorted(set(firsts) - {0}):
            blocks = range(first, len(layout.blocks))
            set_trainable(model, trainable_names(layout, blocks))
            region.set(model, layout, blocks)
            _, cut[layout.blocks[first].name] = run_segments(model, layout, call, clock)
    finally:
        region.clear()
        set_trainable(model, everything)
    return cut


def _update_seconds(model: nn.Module, layout: Layout, device: torch.device) -> list[float]:
    """Seconds of an AdamW step on stand-ins of every unit's parameters, one unit after the other."""
    clock = device_clock(device, time.perf_counter)
    parameters = dict(model.named_parameters())
    seconds = []
    for unit in layout.units:
        copies = [_stand_in(parameters[name]) for name in unit.parameters]
        if not copies:
            seconds.append(0.0)
            continue
        optimizer = torch.optim.AdamW(copies, lr=0.0)
        times = []
        for _ in range(4):
            start = clock()
            optimizer.step()
            times.append(clock() - start)
        seconds.append(median(times[1:]))
    return seconds


def _stand_in(parameter: Tensor) -> nn.Parameter:
    # Values as in training: all-zero ones make the step twice as slow on a CPU.
    copy = nn.Parameter(parameter.detach().clone(memory_format=torch.contiguous_format))
    copy.grad = torch.full_like(copy, 1e-3)
    return copy


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(row.get(name, 0.0) for row in rows) for name in rows[0]}


def _difference(total: dict[str, float], part: dict[str, float]) -> dict[str, float]:
    return {name: max(0.0, value - part.get(name, 0.0)) for name, value in total.items()}
