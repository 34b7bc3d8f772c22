"""Windows: their plan and its literal twin, the optimizer's state of closed blocks, and what is refused."""

from __future__ import annotations

import io
import logging
import math
import random
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthPlan, GrowthScheduler, Stage
from autoprog_diffusion.growth import fixed_plan
from autoprog_diffusion.growth.errors import OrderError
from autoprog_diffusion.growth.windows import even_cuts, window_blocks

from .looping import SMALL, Small, begin, run, scheduler, train


STEPS = 12
# Blocks 0 and 1, 2 and 3, and so on of the small model's eight, twice.
TWICE: dict[str, Any] = {"direction": "window", "num_stages": 8, "sweeps": 2}


ORDERS: tuple[Any, ...] = ("suffix", "prefix", "interleaved")


def literal_cost(weights: list[int], count: int) -> int:
    """The least sum of squares over all ways of cutting a row of weights into parts that are not empty."""
    found = []
    for inner in combinations(range(1, len(weights)), count - 1):
        cuts = [0, *inner, len(weights)]
        found.append(sum(sum(weights[first:last]) ** 2 for first, last in pairwise(cuts)))
    return min(found)


def test_windows_are_as_even_as_blocks_allow() -> None:
    rng = random.Random(0)
    for _ in range(300):
        weights = [rng.randint(0, 30) for _ in range(rng.randint(1, 9))]
        count = rng.randint(1, len(weights))
        cuts = even_cuts(weights, count)
        assert (cuts[0], cuts[-1], len(cuts)) == (0, len(weights), count + 1)
        assert cuts == sorted(set(cuts))
        assert sum(sum(weights[first:last]) ** 2 for first, last in pairwise(cuts)) == literal_cost(weights, count)


@pytest.mark.parametrize("order", ORDERS)
def test_every_sweep_trains_every_block_once(order: Any) -> None:
    for num_blocks in range(1, 31):
        for windows in range(2, num_blocks + 1):
            config = GrowthConfig(direction="window", num_stages=3 * windows, sweeps=3, order=order)
            plan = fixed_plan(config, num_blocks, 1000)
            sweep = [stage.blocks for stage in plan.stages[:windows]]
            assert [stage.blocks for stage in plan.stages] == sweep * 3
            assert sorted(block for window in sweep for block in window) == list(range(num_blocks))
            assert max(map(len, sweep)) - min(map(len, sweep)) <= 1
            assert not plan.monotone
            if order == "suffix":
                assert sorted(sweep) == sweep
            elif order == "prefix":
                assert sorted(sweep, reverse=True) == sweep
            elif num_blocks % windows == 0:
                assert sweep == [tuple(range(window, num_blocks, windows)) for window in range(windows)]


@pytest.mark.parametrize("order", ORDERS)
def test_windows_that_overlap_hold_their_share_and_cover_the_model(order: Any) -> None:
    for num_blocks in range(1, 31):
        for windows in range(1, 9):
            alone = window_blocks(GrowthConfig(direction="window", num_stages=windows, order=order), num_blocks)
            for share in {1 / windows, min(1.0, 1.5 / windows), min(1.0, 2 / windows), 1.0}:
                config = GrowthConfig(direction="window", num_stages=windows, window_share=share, order=order)
                wide = window_blocks(config, num_blocks)
                room = math.floor(share * num_blocks + 1e-9)
                assert [len(blocks) for blocks in wide] == [max(len(own), room) for own in alone]
                assert all(set(own) <= set(blocks) for own, blocks in zip(alone, wide, strict=True))


def test_windows_of_a_model_hold_as_many_parameters_each() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2 * width) for width in (1, 1, 1, 6, 6, 3)])
    growth = GrowthScheduler(
        model, GrowthConfig(direction="window", num_stages=3, stage_embedding=False), blocks=["*"]
    )
    growth.prepare(model, num_training_steps=9, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    assert [stage.blocks for stage in growth.plan.stages] == [(0, 1, 2), (3,), (4, 5)]


def test_windows_go_from_the_input_to_the_output_unless_the_order_says_otherwise() -> None:
    first = {order: fixed_plan(GrowthConfig(direction="window", order=order), 8, 8).stages[0] for order in ORDERS}
    assert [first[order].blocks for order in ORDERS] == [(0, 1), (6, 7), (0, 4)]


def test_a_plan_of_windows_moves_with_the_length_of_the_run() -> None:
    plan = fixed_plan(GrowthConfig(**TWICE), 8, 80)
    assert [stage.start for stage in plan.rescaled(800).stages] == [100 * k for k in range(8)]
    longer = plan.extended(160, at_step=40)
    assert [stage.start for stage in longer.stages] == [0, 10, 20, 30, 40, 70, 100, 130]
    assert [stage.blocks for stage in longer.stages] == [stage.blocks for stage in plan.stages]
    shorter = plan.extended(43, at_step=41)
    assert [stage.start for stage in shorter.stages] == [0, 10, 20, 30, 40, 42]
    assert shorter.stages[-1].blocks == (2, 3, 4, 5, 6, 7)  # of the three that joined


# After every step; stages begin at 0, 1, 3, 4, 6, 7, 9 and 10.
COUNTS = [6, 6, 10, 14, 14, 12, 8, 8, 4, 0, 0, 0]
OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=1e-2),
}


def literal(make: Any, plan: GrowthPlan, layout: Any, *, parks: bool) -> nn.Module:
    """The same training by hand: flags flipped, moments left where they are, or deleted."""
    model = SMALL.build()
    optimizer = make(model.parameters())
    for step in range(STEPS):
        stage = plan.stages[plan.stage_at(step)]
        names = {name for block in stage.blocks for name in layout.blocks[block].parameters}
        names |= set(layout.outputs.parameters)
        if 0 in stage.blocks:
            names |= set(layout.inputs.parameters)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
            if name not in names and not parks:
                optimizer.state.pop(parameter, None)
        train(model, optimizer, step)
    return model


@pytest.mark.parametrize("state", ["release", "park"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_in_windows_equals_its_literal_twin(name: str, state: Any) -> None:
    model = SMALL.build()
    growth = scheduler(model, GrowthConfig(**TWICE, window_state=state))
    optimizer = OPTIMIZERS[name](growth.parameters())
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    run((model, growth, optimizer), STEPS)
    twin = literal(OPTIMIZERS[name], growth.plan, growth.layout, parks=state == "park")
    for (parameter, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs), parameter


def test_only_what_opens_again_is_parked() -> None:
    model, growth, optimizer = begin(STEPS, **TWICE, window_state="park")
    counts = []
    for step in range(STEPS):
        train(model, optimizer, step)
        growth.step()
        parked = growth.state_dict()["parked"]
        named = dict(model.named_parameters())
        assert not [name for name in parked if named[name].requires_grad]
        assert not [name for name, value in named.items() if value in optimizer.state and not value.requires_grad]
        counts.append(len(parked))
    # A window has four parameters, the first one the input layer's two as well; the second sweep takes them back.
    assert counts == COUNTS


@pytest.mark.parametrize(
    "name", ["AdamW8bit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("AdamW4bit", "AdamWFp8"))]
)
def test_states_of_torchao_are_parked_and_resumed_bit_for_bit(name: str) -> None:
    optim = pytest.importorskip("torchao.optim")

    def start() -> tuple[nn.Module, GrowthScheduler, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(4)])  # 4,096 weights are enough to be quantised
        growth = GrowthScheduler(
            model,
            GrowthConfig(direction="window", num_stages=4, sweeps=2, window_state="park", stage_embedding=False),
            blocks=["*"],
        )
        optimizer = getattr(optim, name)(growth.parameters(), lr=1e-2)
        growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
        return model, growth, optimizer

    def steps(parts: Any, *numbers: int) -> None:
        model, growth, optimizer = parts
        for step in numbers:
            inputs = torch.randn(2, 64, generator=torch.Generator().manual_seed(step))
            model(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            growth.step()

    whole = start()
    steps(whole, *range(STEPS))
    for stop in (3, 7):
        parts = start()
        steps(parts, *range(stop))
        assert parts[1].state_dict()["parked"]
        buffer = io.BytesIO()
        torch.save([part.state_dict() for part in parts], buffer)
        buffer.seek(0)
        again = start()
        for part, state in zip(again, torch.load(buffer, weights_only=True)):
            part.load_state_dict(state)
        steps(again, *range(stop, STEPS))
        assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), again[0].parameters()))


def test_rates_of_what_opens_warm_up_at_every_visit() -> None:
    model = Small()
    growth = scheduler(model, GrowthConfig(**TWICE, rewarm_steps=2, stage_embedding=False))
    used: list[dict[str, float]] = []
    optimizer = torch.optim.SGD(growth.parameter_groups(), lr=1.0)
    growth.prepare(model, num_training_steps=24, optimizer=optimizer)
    for step in range(24):
        used.append({unit.name: growth._rewarmup.factor(unit.name) for unit in growth.layout.units})
        (1e-3 * SMALL.loss(model, step)).backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    for block in range(8):
        name = growth.layout.blocks[block].name
        window = block // 2
        for sweep in range(2):
            first = 3 * window + 12 * sweep
            wanted = [1.0, 1.0, 1.0] if first == 0 else [0.5, 1.0, 1.0]
            assert [used[step][name] for step in range(first, first + 3)] == wanted
    assert [factors["inputs"] for factors in used[12:15]] == [0.5, 1.0, 1.0]
    assert all(factors["outputs"] == 1.0 for factors in used)


def test_a_users_plan_may_open_and_close() -> None:
    model = SMALL.build()
    growth = scheduler(model, GrowthConfig(num_stages=3, stage_embedding=False))
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-2)
    plan = GrowthPlan(8, 6, (Stage(0, (0, 1)), Stage(2, (5,)), Stage(4, (1, 5, 7))))
    growth.prepare(model, num_training_steps=6, plan=plan, optimizer=optimizer)
    run((model, growth, optimizer), 6)
    assert [record.blocks for record in growth.history][1] == ("transformer_blocks.5",)
    growth.fold(model)


def test_windows_without_a_known_optimizer_are_refused() -> None:
    with pytest.raises(OrderError, match=r'direction="freeze" or "window".*optimizer=optimizer'):
        begin(known=False, **TWICE)


def test_more_windows_than_blocks_are_merged_and_said(caplog: pytest.LogCaptureFixture) -> None:
    begin(64, direction="window", num_stages=16)
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said.startswith("16 stages do not fit 64 steps and 8 blocks: 8 are left, which begin at steps [0, 8, 16,")
