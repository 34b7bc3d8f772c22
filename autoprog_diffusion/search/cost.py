"""The cost of a training step of any candidate: measured or counted once per resolution, then added up."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from autoprog_diffusion.growth.flops import flop_counter
from autoprog_diffusion.growth.frozen_front import FrozenFront
from autoprog_diffusion.growth.units import Layout, set_trainable, trainable_names, trained_units

from .recorded_calls import RecordedCall
from .unit_timer import Clock, Costs, median_seconds, time_units, wall_clock


PAYLOAD = 2**22  # values in the gradient that the bandwidth is measured with


@dataclass(frozen=True)
class UnitCosts:
    """Cost of every unit, by its name, in one unit of measure (seconds, or FLOPs).

    Attributes:
        forward: Its forward pass.
        input_gradient: Its backward pass if it does not train and only carries the gradient through.
        backward: Index of the first block that trains -> the backward pass of every unit if all blocks from there on
            train. Always holds 0, the full model. The gradient of the first trained block's input is never needed, nor
            are gradients that flow on to the frozen embedders: therefore a later first block is cheaper than the
            full model's entries say.
        update: Its optimizer step and its communication; empty if they are not counted.
    """

    forward: Costs
    input_gradient: Costs
    backward: dict[int, Costs]
    update: Costs = field(default_factory=dict)

    @property
    def weight_gradient(self) -> Costs:
        """Cost that training the unit's own parameters adds to its backward pass."""
        # Noise in a measured cost must not make it negative.
        return {name: max(0.0, total - self.input_gradient[name]) for name, total in self.backward[0].items()}

    def step(self, layout: Layout, blocks: Collection[int]) -> float:
        """Cost of one step that trains `blocks`.

        All units run forward. The units from the first trained block on run backward, those that are frozen without
        their weight gradients. The units that train are updated.
        """
        trained = trained_units(layout, blocks)
        first = min(blocks, default=len(layout.blocks))
        live = layout.units if first == 0 else layout.units[first + 1 :]  # the inputs are unit 0
        backward = self.backward.get(first, self.backward[0])
        weight_gradient = self.weight_gradient
        cost = sum(self.forward.values())
        for unit in live:
            name = unit.name
            cost += backward[name]
            if unit not in trained:
                cost -= min(backward[name], weight_gradient[name])
        return cost + sum(self.update.get(unit.name, 0.0) for unit in trained)


def count_costs(model: nn.Module, layout: Layout, call: RecordedCall, firsts: Iterable[int]) -> UnitCosts:
    """Count the FLOPs of every unit by PyTorch's counter; deterministic. Run it in `probe.leaving_no_trace`.

    Args:
        model: The bare model.
        layout: Its units.
        call: A full training batch.
        firsts: Indices of blocks that are the first to train in some candidate; each takes one more step.
    """
    with flop_counter() as counter:
        return _unit_costs(model, layout, call, firsts, counter.get_total_flops)


def measure_costs(
    model: nn.Module,
    layout: Layout,
    call: RecordedCall,
    firsts: Iterable[int],
    *,
    repeats: int = 5,
    bandwidth: float | None = None,
) -> UnitCosts:
    """Measure the seconds of every unit: medians over repeated steps. Run it in `probe.leaving_no_trace`.

    Args:
        model: The bare model.
        layout: Its units.
        call: A full training batch.
        firsts: Indices of blocks that are the first to train in some candidate.
        repeats: Steps per setting, after one that is not counted.
        bandwidth: Bytes per second of a gradient all-reduce; None for one process.
    """
    device = call.gradient.device
    clock = wall_clock(device)
    # The first run is not counted.
    _, *runs = [_unit_costs(model, layout, call, firsts, clock) for _ in range(repeats + 1)]
    costs: UnitCosts = _medians(runs)
    for unit in layout.units:
        own = list(map(model.get_parameter, unit.parameters))
        costs.update[unit.name] = _update_seconds(own, device)
        if bandwidth is not None:
            size = sum(parameter.nbytes for parameter in own)
            costs.update[unit.name] += size / bandwidth
    return costs


def all_reduce_bandwidth(device: torch.device) -> float:
    """Bytes per second of averaging a float32 gradient over all ranks."""
    payload = torch.zeros(PAYLOAD, device=device)
    return payload.nbytes / median_seconds(lambda: dist.all_reduce(payload), device, repeats=3)


def _unit_costs(
    model: nn.Module, layout: Layout, call: RecordedCall, firsts: Iterable[int], clock: Clock
) -> UnitCosts:
    """Three kinds of step: the full model, one that trains no block, and one for every first block that trains."""
    set_trainable(model, layout.names)
    forward, full = time_units(model, layout, call, clock)
    # Inputs and outputs alone train: the gradient runs through all blocks and stops at no weight.
    ends = {*layout.inputs.parameters, *layout.outputs.parameters}
    set_trainable(model, ends)
    # If neither end trains (LoRA), the gradient with respect to the input makes it run all the way.
    _, through = time_units(model, layout, call if ends else call.differentiable(), clock)
    # They trained in both steps. Their share counts as weight gradient, since it comes and goes with them.
    through |= {layout.inputs.name: 0.0, layout.outputs.name: 0.0}
    backward = {0: full}
    front = FrozenFront()
    try:
        for first in sorted(set(firsts) - {0}):
            blocks = range(first, len(layout.blocks))
            set_trainable(model, trainable_names(layout, blocks))
            front.set(model, layout, blocks)
            _, backward[first] = time_units(model, layout, call, clock)
    finally:
        front.clear()
        set_trainable(model, layout.names)
    return UnitCosts(forward=forward, input_gradient=through, backward=backward)


def _update_seconds(parameters: Sequence[Tensor], device: torch.device) -> float:
    """Seconds of an AdamW step on stand-ins of one unit's parameters."""
    if not parameters:
        return 0.0
    optimizer = torch.optim.AdamW([_stand_in(parameter) for parameter in parameters], lr=0.0)
    return median_seconds(optimizer.step, device, repeats=3)


def _stand_in(parameter: Tensor) -> nn.Parameter:
    """A copy of a parameter, with a gradient, for an optimizer step that leaves no trace."""
    # Values as in training: all-zero ones make the step twice as slow on a CPU.
    copy = nn.Parameter(parameter.detach().clone(memory_format=torch.contiguous_format))
    copy.grad = torch.full_like(copy, 1e-3)
    return copy


def _medians(runs: Sequence[Any]) -> Any:
    """Costs like those of every run, each number the median over the runs."""
    first, *_ = runs
    if isinstance(first, UnitCosts):
        return UnitCosts(**_medians(list(map(vars, runs))))
    if isinstance(first, dict):
        return {key: _medians([run[key] for run in runs]) for key in first}
    return median(runs)
