"""The cost of a candidate, added up from its units, against a real step of that candidate."""

from __future__ import annotations

import pytest
import torch

from autoprog_diffusion.growth import GrowthConfig, GrowthPlan, GrowthScheduler, Stage
from autoprog_diffusion.growth.flops import flop_counter
from autoprog_diffusion.search.cost import count_costs, measure_costs
from autoprog_diffusion.search.probe import leaving_no_trace

from ..settings import BY_ID, Family
from .families import SEARCHED, model_and_calls


def subsets(count: int) -> list[tuple[int, ...]]:
    full = tuple(range(count))
    return [full, full[:1], full[: count // 2], full[::2], full[-1:], full[count // 2 :]]


def real_flops(family: Family, blocks: tuple[int, ...]) -> int:
    """FLOPs of a training step under a plan that trains `blocks`."""
    model, layout, calls = model_and_calls(family, dtype=torch.float32)
    config = GrowthConfig(num_stages=1, stage_embedding=False, order="interleaved")
    growth = GrowthScheduler(model, config)
    growth.prepare(model, num_training_steps=1, plan=GrowthPlan(len(layout.blocks), 1, (Stage(0, blocks),)))
    with flop_counter() as counter:
        calls[0].run(model).backward(calls[0].gradient)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "family", [pytest.param(f, id=f.id, marks=() if f.id in ("sd", "dit") else pytest.mark.slow) for f in SEARCHED]
)
def test_counted_flops_of_every_candidate_are_exact(family: Family) -> None:
    model, layout, calls = model_and_calls(family, dtype=torch.float32)
    candidates = subsets(len(layout.blocks))
    with leaving_no_trace(model):
        costs = count_costs(model, layout, calls[0], [blocks[0] for blocks in candidates])
    for blocks in candidates:
        assert costs.step(layout, blocks) == real_flops(family, blocks), blocks


def test_measured_costs_order_as_the_work_does() -> None:
    """Wall clock is noisy: only that every account is there, none is negative, and training more costs more."""
    model, layout, calls = model_and_calls(BY_ID["dit"], dtype=torch.float32)
    with leaving_no_trace(model):
        costs = measure_costs(model, layout, calls[0], [3], repeats=3, bandwidth=1e6)
    for account in (costs.forward, costs.input_gradient, costs.weight_gradient, costs.update):
        assert set(account) == {unit.name for unit in layout.units}
        assert min(account.values()) >= 0
    full = tuple(range(len(layout.blocks)))
    assert costs.step(layout, full) > costs.step(layout, full[:1]) > 0
    communicated = sum(p.numel() * 4 for p in model.parameters()) / 1e6
    assert sum(costs.update.values()) > communicated
