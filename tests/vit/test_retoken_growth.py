"""Re-tokenization as a schedule: stages, the vanilla end, resume bit for bit, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from autoprog_diffusion.growth import ConfigError, PlanError, StateError
from autoprog_diffusion.vit.asvit import AsViT, Genotype
from autoprog_diffusion.vit.autoprog_one.config import ViTGrowthConfig
from autoprog_diffusion.vit.autoprog_one.scheduler import ViTGrowth
from autoprog_diffusion.vit.models import logits
from autoprog_diffusion.vit.retokenize import RetokenError


def tokens(*strides: int | None, boundaries: tuple[float, ...] = (0.25, 0.5), **options: Any) -> ViTGrowthConfig:
    """A schedule in which tokens grow, and nothing else."""
    fixed: dict[str, Any] = {"min_depth": 1.0, "min_resolution": 1.0, "search": "fixed", "ema_decay": 0.9}
    return ViTGrowthConfig(num_stages=len(strides), strides=strides, boundaries=boundaries, **{**fixed, **options})


CONFIG = tokens(16, 8, None)


def make_model() -> AsViT:
    torch.manual_seed(0)
    return AsViT(Genotype.parse("4,2,2|2,1,2|2,1,2|2,1,2|16,16"), 3, 32)


def train(model: nn.Module, growth: ViTGrowth, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = growth.resize(torch.randn(4, 3, 32, 32, generator=generator))
        F.cross_entropy(logits(model, images), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
        optimizer.zero_grad()
        growth.step()


def started(
    model: nn.Module, config: ViTGrowthConfig = CONFIG, steps: int = 8
) -> tuple[ViTGrowth, torch.optim.Optimizer]:
    growth, optimizer = ViTGrowth(model, config), torch.optim.AdamW(model.parameters(), 1e-2)
    growth.prepare(model, num_training_steps=steps, optimizer=optimizer)
    return growth, optimizer


def test_tokens_shrink_on_time_and_the_vanilla_model_is_left() -> None:
    model = make_model()
    vanilla, (growth, optimizer) = copy.deepcopy(model), started(model)
    strides = []
    for step in range(8):
        projection = model.embed.proj
        strides.append((projection.stride[0], projection.dilation[0]))
        train(model, growth, optimizer, range(step, step + 1))
    growth.fold(model)
    assert strides == [(16, 5)] * 2 + [(8, 2)] * 2 + [(4, 1)] * 4
    assert [(r.step, r.stride) for r in growth.history] == [(0, 16), (2, 8), (4, 4)]
    assert [stage.stride for stage in growth.plan.stages] == [16, 8, None]
    images = torch.randn(2, 3, 32, 32)
    vanilla.load_state_dict(model.state_dict())
    assert torch.equal(vanilla(images), model(images))
    assert repr(model) == repr(vanilla)


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_resume_is_bit_exact_inside_a_stage_and_at_its_start(at: int) -> None:
    model = make_model()
    growth, optimizer = started(model)
    train(model, growth, optimizer, range(at))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), growth.state_dict()))
    train(model, growth, optimizer, range(at, 8))
    other = make_model()
    again, fresh = started(other)
    for part, state in zip((other, fresh, again), saved):
        part.load_state_dict(state)
    train(other, again, fresh, range(at, 8))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
    with growth.averaged(), again.averaged():
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    assert again.history == growth.history


def test_resolution_and_stride_grow_in_one_plan_for_a_plain_vit() -> None:
    sizes: dict[str, Any] = {"image_size": 32, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1}
    model = ViTForImageClassification(ViTConfig(**sizes, num_attention_heads=2, intermediate_size=16, num_labels=3))
    growth, optimizer = started(model, tokens(8, 4, None, resolutions=(16, 24, 32)))
    seen: list[int] = []
    model.vit.layernorm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1] - 1))
    train(model, growth, optimizer, range(8))
    assert seen == [4, 4, 36, 36, 64, 64, 64, 64]
    assert [stage.resolution for stage in growth.plan.stages] == [16, 24, 32]
    growth.fold(model)


def test_depth_resolution_and_stride_grow_in_one_plan() -> None:
    sizes: dict[str, Any] = {"image_size": 32, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 4}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 16, "num_labels": 3}

    def run(steps: range, state: Any = None) -> tuple[nn.Module, ViTGrowth, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = ViTForImageClassification(ViTConfig(**sizes))
        config = ViTGrowthConfig(3, 0.5, (16, 24, 32), search="fixed", ema_decay=0.9, strides=(8, 8, None))
        growth, optimizer = ViTGrowth(model, config), torch.optim.AdamW(model.parameters(), 1e-2)
        growth.prepare(model, num_training_steps=9, optimizer=optimizer)
        if state is not None:
            for part, values in zip((model, optimizer, growth), state):
                part.load_state_dict(values)
        model.vit.layernorm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1] - 1))
        train(model, growth, optimizer, steps)
        return model, growth, optimizer

    seen: list[int] = []
    model, growth, _ = run(range(9))
    assert seen == [4] * 3 + [9] * 3 + [64] * 3
    stages = growth.plan.stages
    assert [(len(s.blocks), s.resolution, s.stride) for s in stages] == [(2, 16, 8), (3, 24, 8), (4, 32, None)]
    half = copy.deepcopy([part.state_dict() for part in (run(range(5))[i] for i in (0, 2, 1))])
    seen.clear()
    other, _, _ = run(range(5, 9), half)
    assert seen == [9] + [64] * 3
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
    growth.fold(model)
    assert not any(module._forward_hooks for name, module in model.named_modules() if "layernorm" not in name)


def test_strides_of_vit_growth_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="one for each of the 2 stages"):
        ViTGrowthConfig(2, search="fixed", strides=(8, 4, None))
    with pytest.raises(ConfigError, match='use search="fixed"'):
        ViTGrowthConfig(2, search="one_shot", strides=(8, None))
    sizes: dict[str, Any] = {"image_size": 32, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2}
    model = ViTForImageClassification(ViTConfig(**sizes, num_attention_heads=2, intermediate_size=16, num_labels=3))
    with pytest.raises(PlanError, match="stage 0: a stride of 16 pixels does not divide its images of 24"):
        ViTGrowth(model, ViTGrowthConfig(2, resolutions=(24, 32), search="fixed", strides=(16, None)))


def test_one_stage_is_ordinary_training() -> None:
    model, plain = make_model(), make_model()
    growth, optimizer = started(model, tokens(None, boundaries=()), steps=3)
    train(model, growth, optimizer, range(3))
    ordinary = torch.optim.AdamW(plain.parameters(), 1e-2)
    for step in range(3):
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        F.cross_entropy(plain(images), torch.tensor([0, 1, 2, 0])).backward()
        ordinary.step()
        ordinary.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters()))


def test_what_does_not_fit_is_refused() -> None:
    model = make_model()
    with pytest.raises(ConfigError, match="2 values"):
        tokens(16, 8, None, boundaries=(0.5,))
    with pytest.raises(ConfigError, match="one per stage"):
        tokens(16, 8, None, resolutions=(16, 32))
    with pytest.raises(PlanError, match="stride of 64 pixels does not divide its images of 32"):
        ViTGrowth(model, tokens(64, 8, None))
    with pytest.raises(PlanError, match="must end with the model's own, 4"):
        ViTGrowth(model, tokens(16, 8, 8))
    with pytest.raises(RetokenError, match="stride 6"):
        ViTGrowth(model, tokens(6, 4, None))
    with pytest.raises(PlanError, match="4 groups of blocks cannot grow in depth: use min_depth=1"):
        ViTGrowth(AsViT(Genotype.parse("4,2,2,2|2,1,2,2|2,1,2,2|2,1,2,2|16,16"), 3, 32), ViTGrowthConfig())
    with pytest.raises(PlanError, match="rise"):
        started(model, tokens(8, 16, None))


def test_a_state_of_other_strides_is_refused() -> None:
    model = make_model()
    growth, _ = started(model)
    other, _ = started(make_model(), tokens(8, 4, None))
    with pytest.raises(StateError, match=r"strides was \[8, 4, None\], now \[16, 8, None\]"):
        growth.load_state_dict(other.state_dict())
