"""The cost of a training step of any candidate: measured or counted once per resolution, then added up."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor, nn

from autoprog_diffusion.growth.flops import flop_counter
from autoprog_diffusion.growth.frozen_front import FrozenFront
from autoprog_diffusion.growth.units import Layout, set_trainable, trainable_names, trained_units

from .recorded_calls import RecordedCall
from .unit_timer import Clock, Costs, median_seconds, time_units, wall_clock


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
            cost += backward[unit.name]
            if unit not in trained:
                cost -= min(backward[unit.name], weight_gradient[unit.name])
        return cost + sum(self.update.get(unit.name, 0.0) for unit in trained)


def count_costs(model: nn.Module, layout: Layout, call: RecordedCall, firsts: Iterable[int] = ()) -> UnitCosts:
    """Count the FLOPs of every unit by PyTorch's counter; deterministic. Run it in `probe.leaving_no_trace`.

    Args:
        model: The bare model.
        layout: Its units.
        call: A full training batch.
        firsts: Indices of blocks that are the first to train in some candidate; each takes one more step.
    """
    with flop_counter() as counter:
        return _unit_costs(model, layout, call, firsts, lambda: float(counter.get_total_flops()))


def measure_costs(
    model: nn.Module,
    layout: Layout,
    call: RecordedCall,
    firsts: Iterable[int] = (),
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
    _, *runs = [_unit_costs(model, layout, call, firsts, clock) for _ in range(repeats + 1)]
    update = {}
    for unit in layout.units:
        own = [model.get_parameter(name) for name in unit.parameters]
        update[unit.name] = _update_seconds(own, device)
        if bandwidth is not None:
            update[unit.name] += sum(parameter.nbytes for parameter in own) / bandwidth
    return UnitCosts(
        forward=_medians(run.forward for run in runs),
        input_gradient=_medians(run.input_gradient for run in runs),
        backward={first: _medians(run.backward[first] for run in runs) for first in runs[0].backward},
        update=update,
    )


def all_reduce_bandwidth(device: torch.device, size: int = 2**22) -> float:
    """Bytes per second of averaging a float32 gradient over all ranks, measured on `size` values."""
    payload = torch.zeros(size, device=device)
    return payload.nbytes / median_seconds(lambda: dist.all_reduce(payload), device, repeats=3)


def _unit_costs(
    model: nn.Module, layout: Layout, call: RecordedCall, firsts: Iterable[int], clock: Clock
) -> UnitCosts:
    """Three kinds of step: the full model, one that trains no block, and one for every first block that trains."""
    set_trainable(model, layout.names)
    full = time_units(model, layout, call, clock)
    # Inputs and outputs alone train: the gradient runs through all blocks and stops at no weight.
    ends = {*layout.inputs.parameters, *layout.outputs.parameters}
    set_trainable(model, ends)
    # If neither end trains (LoRA), the gradient with respect to the input makes it run all the way.
    through = time_units(model, layout, call if ends else call.differentiable(), clock).backward
    # They trained in both steps. Their share counts as weight gradient, since it comes and goes with them.
    through |= {layout.inputs.name: 0.0, layout.outputs.name: 0.0}
    backward = {0: full.backward}
    front = FrozenFront()
    try:
        for first in sorted(set(firsts) - {0}):
            blocks = range(first, len(layout.blocks))
            set_trainable(model, trainable_names(layout, blocks))
            front.set(model, layout, blocks)
            backward[first] = time_units(model, layout, call, clock).backward
    finally:
        front.clear()
        set_trainable(model, layout.names)
    return UnitCosts(forward=full.forward, input_gradient=through, backward=backward)


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


def _medians(runs: Iterable[Costs]) -> Costs:
    """The median over runs of every unit's cost."""
    rows = list(runs)
    return {name: median(row[name] for row in rows) for name in rows[0]}
