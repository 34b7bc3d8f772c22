"""`ViTGrowth` in other hands: what is refused, compiled models, and models of one's own."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from autoprog_diffusion.growth import ConfigError, GrowthPlan, OrderError, StateError
from autoprog_diffusion.vit.autoprog_one.scheduler import ViTGrowth

from . import growing
from .growing import config, train


STEPS = 12


def test_a_state_from_elsewhere_is_refused() -> None:
    model = growing.hf_vit()
    growth, _ = growing.start(model, config("fixed"), STEPS)
    state = growth.state_dict()
    other, _ = growing.start(growing.hf_vit(8), config("fixed"), STEPS)
    with pytest.raises(StateError, match="the checkpoint is of another model: its blocks"):
        other.load_state_dict(state)
    other, _ = growing.start(growing.hf_vit(), config("fixed", operator="momentum"), STEPS)
    with pytest.raises(StateError, match="operator was 'stacking', now 'momentum'.*resume with its preset"):
        other.load_state_dict(state)
    with pytest.raises(StateError, match="version 0"):
        growth.load_state_dict({**state, "version": 0})


def test_calls_at_the_wrong_place_are_refused() -> None:
    model = growing.hf_vit()
    growth = ViTGrowth(model, config("fixed"))
    with pytest.raises(OrderError, match="call growth.prepare"):
        growth.step()
    with pytest.raises(OrderError, match="found no optimizer"):
        growth.prepare(model, num_training_steps=STEPS)
    some = torch.optim.SGD(model.vit.parameters())
    with pytest.raises(OrderError, match=r"lacks 2 parameters.*'classifier.weight'"):
        growth.prepare(model, num_training_steps=STEPS, optimizer=some)
    optimizer = torch.optim.SGD(model.parameters())
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    with pytest.raises(OrderError, match="called already"):
        growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer)
    with pytest.raises(OrderError, match="does not hold"):
        growth.fold(nn.Linear(1, 1))
    with pytest.raises(OrderError, match=r"ended in stage 1 of 3 with 3 of 6 blocks.*step 8 at least"):
        growth.fold(model)
    with pytest.raises(ConfigError, match="larger than the images"):
        growth.resize(torch.zeros(1, 3, 4, 4))
    train(model, growth, optimizer, range(STEPS))
    growth.fold(model)
    with pytest.raises(OrderError, match="after fold"):
        growth.step()
    with pytest.raises(OrderError, match="runs once"):
        growth.fold(model)


def test_a_compiled_model_is_refused_where_its_shape_changes_every_step() -> None:
    model = growing.hf_vit()
    growth = ViTGrowth(model, config("one_shot"))
    optimizer = torch.optim.SGD(model.parameters())
    parts = {"optimizer": optimizer, "held_out": [growing.batch(0)], "loss_fn": growing.loss_fn}
    with pytest.raises(OrderError, match="do not compile"):
        growth.prepare(torch.compile(model), num_training_steps=STEPS, **parts)


@pytest.mark.slow
def test_a_compiled_model_follows_a_fixed_schedule() -> None:
    """Compiled graphs do not outlive the shape they were traced for."""
    seen = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = growing.hf_vit(4).eval()
        growth = ViTGrowth(model, config("fixed", min_depth=0.25))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        called = torch.compile(model, backend="eager") if compiled else model
        growth.prepare(called, num_training_steps=3, optimizer=optimizer)
        train(called, growth, optimizer, range(3))
        growth.fold(called)
        seen.append(growing.output(model, growing.batch(5)[0]))
    torch.testing.assert_close(*seen)


def test_a_sharding_backend_is_refused() -> None:
    fsdp = SimpleNamespace(distributed_type=SimpleNamespace(value="FSDP"))
    with pytest.raises(OrderError, match="FSDP cannot grow in depth.*DistributedDataParallel"):
        ViTGrowth(growing.hf_vit(), config("fixed"), fsdp)


class OwnViT(nn.Module):
    """A vision transformer of nobody's library, without position embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.ModuleList([copy.deepcopy(layer) for _ in range(4)])
        self.head = nn.Linear(16, growing.CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(tokens.mean(1))


def test_a_model_of_ones_own_grows_by_the_names_of_its_blocks() -> None:
    model = OwnViT()
    with pytest.raises(ConfigError, match="does not say how large its images are"):
        ViTGrowth(model, config("one_shot"), blocks=["layers.*"])
    growth = ViTGrowth(model, config("one_shot", resolutions=(8, 12, 16)), blocks=["layers.*"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    parts = {"held_out": [growing.batch(0)], "loss_fn": growing.loss_fn}
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer, **parts)
    train(model, growth, optimizer, range(STEPS))
    growth.fold(model)
    assert [record.depth for record in growth.history][-1] == 4


def test_a_failing_loss_is_the_users_own_error() -> None:
    model = growing.hf_vit()
    growth = ViTGrowth(model, config("one_shot"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parts = {"held_out": [growing.batch(0)], "loss_fn": lambda model, images, targets: 1 / 0}
    growth.prepare(model, num_training_steps=STEPS, optimizer=optimizer, **parts)
    with pytest.raises(ZeroDivisionError):
        train(model, growth, optimizer, range(2))
    # The model is as it was: nothing of the evaluation is left in it.
    assert growth.searching
    assert torch.is_grad_enabled()


def test_the_plan_is_saved_and_read_like_any_other(tmp_path: Path) -> None:
    growth, _ = growing.start(growing.hf_vit(), config("fixed"), STEPS)
    growth.plan.save(tmp_path / "plan.json")
    assert GrowthPlan.load(tmp_path / "plan.json") == growth.plan
