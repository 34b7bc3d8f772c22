"""Gradient checkpointing under a budget: what is predicted, what is chosen, and what is refused."""

from __future__ import annotations

import itertools
import logging
import random
import re
from typing import Any

import pytest
import torch

from autoprog_diffusion import ConfigError, GrowthConfig, GrowthScheduler, OrderError, UnitError
from autoprog_diffusion.growth.memory import UnitBytes, choose_recomputed, held_bytes, peak_bytes

from ..settings import BY_ID, Family
from .live_bytes import LiveBytes
from .looping import SMALL, Parts, begin


PARTS = ("weights", "gradients", "optimizer", "activations")


def one_stage(family: Family, memory_gb: float | None = 1.0, **settings: Any) -> Parts:
    """A run of one stage that trains everything, after its first step."""
    settings = {"checkpointing": "auto", "num_stages": 1, "min_trainable": 1.0, **settings}
    parts = begin(4, family=family, memory_gb=memory_gb, **settings)
    step(parts, family, 0)
    return parts


def step(parts: Parts, family: Family, seed: int, precision: Any = None) -> None:
    model, growth, optimizer = parts
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
        loss = family.loss(model, seed)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    growth.step()


def total(memory: dict[str, Any]) -> int:
    return sum(memory[part] for part in PARTS)


def smallest(family: Family) -> float:
    with pytest.raises(ConfigError, match="too little") as caught:
        one_stage(family, 1e-9)
    found = re.search(r"smallest that is enough is ([\d.]+)\. ", str(caught.value))
    assert found is not None
    return float(found.group(1))


@pytest.mark.parametrize("name", ["sdxl", "dit", "flux", "wan", "lumina2", "unet2d"])
def test_the_predicted_peak_is_the_peak(name: str) -> None:
    family = BY_ID[name]
    _, growth, _ = one_stage(family)
    most = total(growth.history[0].memory)
    least = smallest(family) * 1e9
    over = []
    for share in (0.0, 0.4, 0.8, 1.0):
        parts = one_stage(family, (least + share * (most - least)) / 1e9)
        model = parts[0]
        memory = parts[1].history[0].memory
        # Gradients are there, as in the middle of an accumulation.
        family.loss(model, 1).backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        with LiveBytes([*model.parameters(), *model.buffers(), *gradients]) as live:
            family.loss(model, 2).backward()
        over.append(live.peak - memory["activations"])
    # What comes on top are the results of single operations, the same whatever is computed again.
    assert min(over) > 0
    assert max(over) - min(over) <= 0.01 * most
    assert max(over) <= 0.15 * memory["activations"]


def test_weights_gradients_and_optimizer_state_are_exact() -> None:
    model, growth, optimizer = one_stage(BY_ID["unet2d"])
    memory = growth.history[0].memory
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert memory["weights"] == weights + sum(buffer.numel() * 4 for buffer in model.buffers())
    assert memory["gradients"] == weights
    assert memory["optimizer"] == 2 * weights + 4 * len(list(model.parameters()))
    bucketed = held_bytes(model.parameters(), [optimizer], bucketed=True)
    assert bucketed.gradients == 2 * weights


def timeline(units: list[UnitBytes], recomputed: set[int]) -> int:
    """The literal twin of `peak_bytes`: what is held after every event."""
    held = cached = 0
    seen = []
    for index, unit in enumerate(units):
        held += unit.kept + (0 if index in recomputed else unit.inside)
        cached += unit.cached if index in recomputed else 0
        seen.append(held)
    seen.append(held + cached)
    for index in reversed(range(len(units))):
        again = units[index].largest if index in recomputed else 0
        seen.append(held + again)
        held -= units[index].kept + (0 if index in recomputed else units[index].inside)
    assert held == 0
    return max(seen)


def drawn(seed: int, count: int) -> list[UnitBytes]:
    random.seed(seed)
    units = []
    for _ in range(count):
        inside = random.randrange(1, 100)
        units.append(
            UnitBytes(
                kept=random.randrange(20),
                inside=inside,
                largest=random.randint(1, inside),
                cached=random.randrange(inside),
                flops=random.randrange(1000),
            )
        )
    return units


def test_the_choice_fits_wherever_one_does_and_spares_what_it_can() -> None:
    for seed in range(20):
        units = drawn(seed, 6)
        sets = [set(chosen) for size in range(7) for chosen in itertools.combinations(range(6), size)]
        peaks = [peak_bytes(units, chosen) for chosen in sets]
        assert peaks == [timeline(units, chosen) for chosen in sets]
        least = min(peaks)
        # Nothing takes less than to compute everything again.
        assert peak_bytes(units, set(range(6))) == least
        for room in range(least, max(peaks) + 1, 10):
            chosen = choose_recomputed(units, set(range(6)), room)
            assert peak_bytes(units, chosen) <= room
            # No further unit can be spared.
            assert all(peak_bytes(units, chosen - {index}) > room for index in chosen)
        assert choose_recomputed(units, set(range(6)), max(peaks)) == set()


def test_the_smallest_budget_is_named_and_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    family = BY_ID["dit"]
    least = smallest(family)
    with pytest.raises(ConfigError, match="too little"):
        one_stage(family, least - 2e-6)
    with caplog.at_level(logging.INFO):
        _, growth, _ = one_stage(family, least)
    memory = growth.history[0].memory
    assert least * 1e9 - 1000 <= total(memory) <= least * 1e9
    assert memory["recomputed"] == list(growth.history[0].recomputed)
    said = [record.message for record in caplog.records if "computed again" in record.message]
    assert len(said) == 1
    assert f"{len(memory['recomputed'])} blocks are computed again" in said[0]


def test_a_loop_keeps_its_own_function_afterwards() -> None:
    family = BY_ID["unet2d"]
    model = family.build().train()
    model.enable_gradient_checkpointing(gradient_checkpointing_func=print)
    before = {name: vars(module).copy() for name, module in model.named_modules()}
    growth = GrowthScheduler(model, GrowthConfig(num_stages=1, min_trainable=1.0, checkpointing="none"))
    growth.prepare(model, num_training_steps=1, optimizer=torch.optim.AdamW(growth.parameters()))
    assert print not in [vars(module).get("_gradient_checkpointing_func") for module in model.modules()]
    family.loss(model, 0).backward()
    growth.fold(model)
    for name, module in model.named_modules():
        for key in ("gradient_checkpointing", "_gradient_checkpointing_func"):
            assert vars(module).get(key) is before[name].get(key)


def test_random_numbers_and_gradients_are_left_as_they_were() -> None:
    family = BY_ID["dit"]
    states = []
    for checkpointing, budget in (("none", None), ("auto", 1.0)):
        model, _, _ = begin(4, family=family, checkpointing=checkpointing, memory_gb=budget, num_stages=1)
        torch.manual_seed(3)
        model(**family.inputs(0, 2))
        states.append(torch.get_rng_state())
        assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(*states)


def test_a_search_finds_the_scores_that_it_finds_without() -> None:
    """Costs differ: what is computed again costs more."""
    gains = []
    for checkpointing in ("none", "all"):
        settings = {"search": "zero_shot", "num_stages": 2, "checkpointing": checkpointing}
        parts = begin(6, family=BY_ID["dit"], **settings)
        for seed in range(6):
            step(parts, BY_ID["dit"], seed)
        (decision,) = parts[1].decisions
        gains.append({row["name"]: row["gain"] for row in decision["candidates"]})
    assert gains[0] == gains[1]


def test_what_cannot_be_measured_is_refused() -> None:
    family = BY_ID["dit"]
    model = family.build()
    growth = GrowthScheduler(model, GrowthConfig(checkpointing="auto", memory_gb=1, direction="unfreeze"))
    with pytest.raises(OrderError, match="optimizer"):
        growth.prepare(model, num_training_steps=4)
    model = family.build()
    growth = GrowthScheduler(model, GrowthConfig(checkpointing="auto", memory_gb=1))
    compiled: Any = torch.compile(model)
    with pytest.raises(OrderError, match="compiled"):
        growth.prepare(compiled, num_training_steps=4, optimizer=torch.optim.AdamW(growth.parameters()))
    # A model of a user's own is recomputed by nobody.
    with pytest.raises(UnitError, match="Small"):
        begin(family=SMALL, checkpointing="all")


SETTINGS_THAT_DO = [
    ({"checkpointing": "some"}, "checkpointing='some' is not allowed: use one of"),
    ({"checkpointing": "auto"}, "needs memory_gb"),
    ({"checkpointing": "auto", "memory_gb": 0}, "memory_gb=0 is not allowed"),
    ({"checkpointing": "auto", "memory_gb": "24"}, "memory_gb='24' is not allowed"),
    ({"checkpointing": "all", "memory_gb": 24}, "memory_gb=24 has no effect"),
    ({"memory_gb": 24}, "memory_gb=24 has no effect"),
]


def test_settings_that_do_not_go_together() -> None:
    for settings, message in SETTINGS_THAT_DO:
        with pytest.raises(ConfigError, match=re.escape(message)):
            GrowthConfig(**settings)
