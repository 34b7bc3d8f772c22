"""The scheduler's state: what is refused, what a resume restores, and a compiled model."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth import StateError
from autoprog_diffusion.growth.planning import (
    FREE,
    KEPT,
    KEPT_WITH_EMBEDDING,
    KEPT_WITH_SEARCH,
    KEPT_WITH_WINDOWS,
    SHOWN,
)

from .preparing import DIT, UNET, prepared


def test_state_of_another_run_is_refused() -> None:
    _, growth = prepared()
    growth.step()
    state = growth.state_dict()
    others = [
        (prepared(steps=9, order="suffix")[1], "another growth plan .*stages was"),
        (prepared(order="suffix")[1], "another growth plan .*stages was"),
        (prepared(stage_embedding=False)[1], "stage embedding holds .*this run's None"),
    ]
    model = UNET.build()
    other = GrowthScheduler(model, GrowthConfig(num_stages=3, order="interleaved", direction="unfreeze"))
    other.prepare(model, num_training_steps=6)
    others.append((other, "another model: its model_class is 'DiTTransformer2DModel', this model's is 'UNet2DModel'"))
    for scheduler, named in others:
        with pytest.raises(StateError, match=named):
            scheduler.load_state_dict(state)
        assert scheduler._step == 0
    with pytest.raises(StateError, match="stage embedding holds None"):
        growth.load_state_dict(prepared(stage_embedding=False)[1].state_dict())


def test_state_of_another_width_is_refused() -> None:
    _, growth = prepared()
    model = type(DIT.build()).from_config({**DIT.build().config, "num_embeds_ada_norm": 11})
    other = GrowthScheduler(model, GrowthConfig(num_stages=3, order="interleaved", direction="unfreeze"))
    other.prepare(model, num_training_steps=6)
    with pytest.raises(StateError, match="another model: its parameters"):
        other.load_state_dict(growth.state_dict())


@pytest.mark.parametrize("version", [None, 0, 2])
def test_state_of_another_version_is_refused(version: Any) -> None:
    _, growth = prepared()
    with pytest.raises(StateError, match=f"version {version}"):
        growth.load_state_dict({**growth.state_dict(), "version": version})


@pytest.mark.parametrize("settings", [{"ema_decay": 0.9}, {"stage_dropout": 0.1}], ids=str)
def test_state_of_another_embedding_setting_is_refused(settings: dict[str, Any]) -> None:
    plain, other = prepared()[1], prepared(**settings)[1]
    for ours, theirs in ((plain, other), (other, plain)):
        with pytest.raises(StateError, match=r"stage_embedding|embedding|ema_decay|stage_dropout"):
            ours.load_state_dict(theirs.state_dict())


def grown(**settings: Any) -> GrowthScheduler:
    """A scheduler with an optimizer, in stage 0."""
    model = DIT.build()
    config = {"num_stages": 2, "order": "interleaved", "direction": "unfreeze", **settings}
    growth = GrowthScheduler(model, GrowthConfig(**config))
    optimizer = torch.optim.AdamW(growth.parameter_groups())
    growth.prepare(model, num_training_steps=6, optimizer=optimizer)
    return growth


OTHERS: dict[str, Any] = {
    "embedders_always": True,
    "resolution_multiple": 16,
    "stage_embedding_init": "carry",
    "stage_dropout": 0.2,
    "ema_decay": 0.5,
}
SAVED: dict[str, Any] = {"stage_dropout": 0.1, "ema_decay": 0.9}


def test_settings_that_no_plan_shows_are_compared() -> None:
    for name in OTHERS:
        state = prepared(**SAVED)[1].state_dict()
        other = prepared(**{**SAVED, name: OTHERS[name]})[1]
        before = getattr(prepared(**SAVED)[1].config, name)
        with pytest.raises(
            StateError, match=f"run had {name}={before!r}, this one has {name}={OTHERS[name]!r}: resume"
        ):
            other.load_state_dict(state)
        # A checkpoint that is older than the comparison.
        del state["settings"]
        other.load_state_dict(state)


def test_settings_of_a_search_and_of_windows_are_compared_where_there_is_one() -> None:
    for settings, name, value in (
        ({"search": "zero_shot"}, "search_objective", "random"),
        ({"search": "zero_shot"}, "search_orders", ("suffix",)),
        ({"direction": "window", "order": "suffix"}, "window_state", "park"),
        ({}, "rewarm_steps", 3),
    ):
        state = grown(**settings).state_dict()
        with pytest.raises(StateError, match=f"this one has {name}="):
            grown(**settings, **{name: value}).load_state_dict(state)
    state = grown().state_dict()
    grown(search_objective="random", window_state="park", frozen_dtype="int8").load_state_dict(state)


def test_every_setting_is_compared_shown_or_free() -> None:
    kinds = (SHOWN, KEPT, KEPT_WITH_EMBEDDING, KEPT_WITH_SEARCH, KEPT_WITH_WINDOWS, FREE)
    names = [name for kind in kinds for name in kind]
    assert sorted(names) == sorted(field.name for field in fields(GrowthConfig))


def test_loading_reapplies_the_stage() -> None:
    _, growth = prepared(order="suffix")
    for _ in range(3):
        growth.step()
    model, other = prepared(order="suffix")
    other.load_state_dict(growth.state_dict())
    assert other.stage == growth.stage == 1
    assert other.history == growth.history
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, p in growth._model.named_parameters() if p.requires_grad
    }
    assert other.stage_embedding.stage == 1


def test_accelerate_saves_and_restores_the_scheduler(tmp_path: Path, accelerator: Any) -> None:
    def build() -> tuple[Any, GrowthScheduler, Any]:
        accelerator.free_memory()
        model = DIT.build()
        growth = GrowthScheduler(
            model, GrowthConfig(num_stages=3, ema_decay=0.9, order="interleaved", direction="unfreeze"), accelerator
        )
        optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-2)
        model, optimizer = accelerator.prepare(model, optimizer)
        growth.prepare(model, num_training_steps=6)
        return model, growth, optimizer

    def run(model: Any, growth: GrowthScheduler, optimizer: Any, steps: range) -> None:
        for step in steps:
            accelerator.backward(DIT.loss(model, step))
            optimizer.step()
            growth.step()
            optimizer.zero_grad()

    model, growth, optimizer = build()
    run(model, growth, optimizer, range(2))
    accelerator.save_state(str(tmp_path))
    run(model, growth, optimizer, range(2, 6))
    accelerator._custom_objects.clear()
    again, other, optimizer = build()
    accelerator.load_state(str(tmp_path))
    assert other.stage == 1
    run(again, other, optimizer, range(2, 6))
    for (name, ours), theirs in zip(again.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert torch.equal(other.stage_embedding.average, growth.stage_embedding.average)


def test_a_compiled_model_follows_the_stages() -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    config = GrowthConfig(num_stages=2, min_trainable=0.5, order="suffix", stage_embedding=False, direction="unfreeze")
    growth = GrowthScheduler(model, config, blocks=["*"])
    compiled = torch.compile(model, backend="eager")
    growth.prepare(compiled, num_training_steps=2)
    for trained in (4, 8):
        compiled(torch.randn(2, 4)).sum().backward()
        assert sum(p.grad is not None for p in model.parameters()) == trained
        growth.step()
        model.zero_grad()
    growth.fold(compiled)
