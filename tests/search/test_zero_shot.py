"""The search inside a training run: decisions, replay, resume, and everything that could go wrong in a probe."""

from __future__ import annotations

import io
import json
import logging
import math
from typing import Any

import pytest
import torch
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthPlan, GrowthScheduler
from autoprog_diffusion.growth.errors import ConfigError, SearchError

from ..settings import BY_ID, Family


STEPS = 16
UNET = BY_ID["unet2d"]


def start(
    family: Family = UNET, plan: GrowthPlan | None = None, batch: int = 3, **settings: Any
) -> tuple[nn.Module, GrowthScheduler, torch.optim.Optimizer]:
    model = family.build().train()
    settings = {"search": "zero_shot", "num_stages": 3, **settings}
    growth = GrowthScheduler(model, GrowthConfig(**settings))
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-3)
    growth.prepare(model, num_training_steps=STEPS, plan=plan, optimizer=optimizer)
    return model, growth, optimizer


def train(run: tuple, begin: int = 0, end: int = STEPS, family: Family = UNET, batch: int = 3) -> None:
    model, growth, optimizer = run
    for step in range(begin, end):
        family.loss(model, step, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()


def weights(run: tuple) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in run[1].parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("objective", ["gain_per_cost", "rank_vote", "random", "fixed"])
@pytest.mark.parametrize("family", [UNET, BY_ID["dit"], BY_ID["hf_vit"]], ids=lambda family: family.id)
def test_every_stage_but_the_last_is_chosen(family: Family, objective: str) -> None:
    run = start(family, search_objective=objective)
    growth = run[1]
    train(run, family=family)
    plan, count = growth.plan, len(growth.layout.blocks)
    assert [stage.start for stage in plan.stages] == [0, 2, 5, 10]
    assert plan.stages[0].blocks == ()
    assert plan.stages[-1].blocks == tuple(range(count))
    assert [decision["stage"] for decision in growth.decisions] == [1, 2]
    for decision in growth.decisions:
        chosen = plan.stages[decision["stage"]].blocks
        names = {row["name"]: tuple(row["blocks"]) for row in decision["candidates"]}
        assert names[decision["choice"]] == chosen
        values = [float(row["value"]) for row in decision["candidates"]]
        assert float(next(r["value"] for r in decision["candidates"] if r["name"] == decision["choice"])) == min(
            values
        )
    json.dumps(growth.decisions, allow_nan=False)
    assert not [
        hook for module in run[0].modules() for hook in module._forward_hooks.values() if "remember" in str(hook)
    ]


def test_the_fixed_objective_is_the_fixed_schedule() -> None:
    run = start(search_objective="fixed", order="interleaved")
    train(run)
    fixed = GrowthScheduler(UNET.build(), GrowthConfig(num_stages=3, order="interleaved", direction="unfreeze"))
    fixed.prepare(fixed._model, num_training_steps=STEPS)
    assert [s.blocks for s in run[1].plan.stages[1:]] == [s.blocks for s in fixed.plan.stages]


def test_replaying_the_found_plan_trains_the_same_bits() -> None:
    searched = start()
    train(searched)
    plan = GrowthPlan.from_dict(json.loads(json.dumps(searched[1].plan.to_dict())))
    replayed = start(plan=plan, search="none", num_stages=4)
    train(replayed)
    assert same(weights(searched), weights(replayed))


def test_resume_at_every_step_decides_the_same() -> None:
    whole = start()
    snapshots = []
    for step in range(STEPS):
        train(whole, step, step + 1)
        buffer = io.BytesIO()
        calls = whole[1]._search._search.saved_calls()
        state = {"model": whole[0].state_dict(), "optimizer": whole[2].state_dict(), "growth": whole[1].state_dict()}
        torch.save({**state, "calls": calls}, buffer)
        snapshots.append(buffer)
    for done, buffer in enumerate(snapshots[:-1], start=1):
        buffer.seek(0)
        states = torch.load(buffer, weights_only=True)
        run = start()
        run[0].load_state_dict(states["model"])
        run[2].load_state_dict(states["optimizer"])
        run[1]._search._search.restore_calls(states["calls"])
        run[1].load_state_dict(states["growth"])
        train(run, done)
        assert run[1].plan == whole[1].plan, done
        assert same(weights(run), weights(whole)), done


def test_searching_does_not_disturb_the_training() -> None:
    """The stages train exactly what a plan without any probe trains; only the choice is the search's."""
    searched = start(search_cost="measured")
    train(searched)
    replayed = start(plan=searched[1].plan, search="none", num_stages=4)
    train(replayed)
    assert same(weights(searched), weights(replayed))


def test_resolutions_are_candidates() -> None:
    run = start(resolutions=(0.5, 0.5, 1.0), resolution_multiple=1)
    growth = run[1]
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        images = growth.resize(torch.randn(3, 3, 8, 8, generator=generator))
        output = run[0](images, torch.tensor([1, 5, 9]), return_dict=False)[0]
        (output - images).square().mean().backward()
        run[2].step()
        run[2].zero_grad()
        growth.step()
    first = {row["resolution"] for row in growth.decisions[0]["candidates"]}
    assert first == {0.5, 1.0}
    assert [stage.resolution for stage in growth.plan.stages] == sorted(s.resolution for s in growth.plan.stages)
    assert growth.plan.stages[-1].resolution == 1.0


def test_a_users_loss_takes_the_place_of_the_loop() -> None:
    model = UNET.build().train()
    growth = GrowthScheduler(model, GrowthConfig(num_stages=2, search="zero_shot"))
    seen: list[int] = []

    def loss_fn(network: nn.Module, seed: int) -> torch.Tensor:
        seen.append(seed)
        return UNET.loss(network, seed, 3)

    growth.prepare(model, num_training_steps=8, loss_fn=loss_fn, batches=[70, 71, 72])
    growth.step()
    growth.step()
    assert seen == [70, 71]
    assert len(growth.decisions) == 1


@pytest.mark.parametrize("objective", ["rank_vote", "gain_per_cost"])
def test_a_batch_of_one_is_degenerate_and_said_so(objective: str, caplog: pytest.LogCaptureFixture) -> None:
    run = start(search_objective=objective)
    with caplog.at_level(logging.WARNING):
        train(run, batch=1)
    assert "degenerate scores" in caplog.text
    rows = run[1].decisions[0]["candidates"]
    assert all(row["degenerate"] and row["kappa"] == "nan" for row in rows)


def test_identical_samples_are_degenerate() -> None:
    run = start(search_objective="rank_vote")
    model, growth, optimizer = run
    images = torch.randn(1, 3, 8, 8).repeat(4, 1, 1, 1)
    for _ in range(3):
        model(images, torch.full((4,), 7), return_dict=False)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    assert {row["kappa"] for row in growth.decisions[0]["candidates"]} == {"inf"}


def test_nan_in_an_output_is_degenerate_not_best() -> None:
    run = start(search_objective="rank_vote")
    with torch.no_grad():
        run[0].up_blocks[1].resnets[0].conv1.bias[0] = math.nan
    train(run, 0, 3)
    assert all(row["degenerate"] for row in run[1].decisions[0]["candidates"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_under_autocast(dtype: torch.dtype) -> None:
    run = start()
    model, growth, optimizer = run
    inner = model.forward
    model.forward = torch.autocast("cpu", dtype=dtype)(inner)  # as Accelerate does
    for step in range(3):
        UNET.loss(model, step, 3).float().backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    assert not any(row["degenerate"] for row in growth.decisions[0]["candidates"])


def test_a_compiled_denoiser_is_searched_like_any_other() -> None:
    plain = start()
    train(plain, 0, 6)
    model = UNET.build().train()
    growth = GrowthScheduler(model, GrowthConfig(num_stages=3, search="zero_shot"))
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-3)
    compiled = torch.compile(model, backend="eager")
    growth.prepare(compiled, num_training_steps=STEPS, optimizer=optimizer)
    train((compiled, growth, optimizer), 0, 6)
    assert [d["choice"] for d in growth.decisions] == [d["choice"] for d in plain[1].decisions]


def test_dropout_and_accumulation() -> None:
    """Calls of an accumulated step are all real; the probe runs without dropout, so two searches agree."""
    choices = []
    for _ in range(2):
        run = start(BY_ID["dit"])
        model, growth, optimizer = run
        for step in range(3):
            for micro in range(2):
                (BY_ID["dit"].loss(model, 10 * step + micro, 3) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
            growth.step()
        choices.append(growth.decisions[0]["candidates"])
    assert choices[0] == choices[1]


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_stages=1 leaves a search nothing to choose"):
        start(num_stages=1)
    with pytest.raises(ConfigError, match="search_batches=1 is not allowed"):
        GrowthConfig(search_batches=1, direction="unfreeze")
    with pytest.raises(ConfigError, match="search_orders=.*sideways"):
        GrowthConfig(search_orders=("sideways",), direction="unfreeze")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a plan and a search are both given"):
        start(plan=GrowthPlan.from_dict(start()[1].plan.to_dict()))


def test_without_an_output_head_the_last_block_warms_up_and_is_in_every_candidate() -> None:
    stack = nn.Sequential(*[nn.Linear(2, 2) for _ in range(8)])
    growth = GrowthScheduler(stack, GrowthConfig(search="zero_shot"), blocks=["*"])
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-2)
    growth.prepare(stack, num_training_steps=16, optimizer=optimizer)
    assert growth.plan.stages[0].blocks == (7,)
    for _ in range(15):
        stack(torch.randn(4, 2)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()
    assert [decision["stage"] for decision in growth.decisions] == [1, 2, 3]
    assert all(7 in row["blocks"] for decision in growth.decisions for row in decision["candidates"])


def test_a_loop_that_never_calls_the_model_is_told() -> None:
    _, growth, _ = start()
    growth.step()
    with pytest.raises(SearchError, match="0 training calls were recorded"):
        growth.step()
