"""The choice of AutoProg-One: its fitted exponent, its score, its losses and costs, against literal twins."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn

from autoprog_diffusion.vit.autoprog_one.config import ViTGrowthConfig
from autoprog_diffusion.vit.autoprog_one.one_shot import (
    choose,
    evaluating,
    fit_exponent,
    mean_loss,
    step_flops,
    step_seconds,
)
from autoprog_diffusion.vit.autoprog_one.shapes import Shape

from . import growing


SHAPES = [Shape(depth, side) for depth in (9, 15, 18) for side in (128, 192, 224)]


def slow_fit(losses: list[float], costs: list[float]) -> float:
    """a1 of the same line by gradient descent on the squared error, from a bad start."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (costs, losses))
    line = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([line], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        descent.zero_grad()
        error = ((line[0] + line[1] * (x - x.mean()) - y) ** 2).sum()
        error.backward()
        return error

    descent.step(closure)
    return float(line[1].detach())


def test_the_exponent_is_the_slow_optimisers() -> None:
    draw = random.Random(0)
    for _ in range(20):
        costs = [draw.uniform(0.1, 10) for _ in range(draw.randrange(2, 10))]
        losses = [draw.uniform(0.5, 2) * cost ** draw.uniform(-1, 0.3) for cost in costs]
        assert fit_exponent(losses, costs) == pytest.approx(max(-slow_fit(losses, costs), 0.0), abs=1e-5)
    assert fit_exponent([1.0, 2.0], [3.0, 3.0]) == 0.0
    assert fit_exponent([1.0, 2.0], [3.0, 4.0]) == 0.0  # loss rises with cost


def test_an_exact_power_law_ties_and_the_cheapest_wins() -> None:
    costs = [float(shape.depth * shape.resolution**2) for shape in SHAPES]
    losses = [7.0 * cost**-0.13 for cost in costs]
    index, w, verdicts = choose(SHAPES, losses, costs)
    assert w == pytest.approx(0.13)
    assert index == 0
    assert max(v.score for v in verdicts) == pytest.approx(min(v.score for v in verdicts))


def test_the_choice_is_the_one_furthest_below_the_trend() -> None:
    draw = random.Random(1)
    for _ in range(50):
        costs = [draw.uniform(1, 10) for _ in SHAPES]
        losses = [draw.uniform(1, 2) * cost**-0.2 for cost in costs]
        index, w, verdicts = choose(SHAPES, losses, costs)
        assert index == min(range(9), key=lambda i: losses[i] * costs[i] ** w)
        assert [v.score for v in verdicts] == pytest.approx([a * (b / max(costs)) ** w for a, b in zip(losses, costs)])


def test_without_a_trend_the_lowest_loss_wins_and_a_broken_one_never() -> None:
    assert choose(SHAPES[:3], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0])[:2] == (0, 0.0)
    for broken in (math.nan, math.inf, 0.0, -1.0):
        index, _, verdicts = choose(SHAPES[:3], [broken, 2.0, 1.9], [1.0, 2.0, 3.0])
        assert index != 0
        assert math.isinf(verdicts[0].score)
        assert verdicts[0].to_dict()["score"] == "inf"
    assert choose(SHAPES[:2], [math.nan, math.nan], [2.0, 1.0])[0] == 1  # for want of anything better


def test_evaluation_leaves_modes_and_random_states() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    model[0].eval()
    state = torch.random.get_rng_state()
    with evaluating(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.randn(3)
    with pytest.raises(RuntimeError, match="shapes"), evaluating(model):
        model(torch.randn(1, 7))
    assert model.training
    assert not model[0].training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_mean_loss_is_over_samples_after_resizing() -> None:
    seen: list[int] = []

    def loss_fn(model: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(images.shape[-1])
        return targets.float().mean()

    batches = [(torch.zeros(3, 3, 8, 8), torch.tensor([1, 2, 3])), (torch.zeros(1, 3, 8, 8), torch.tensor([6]))]
    value = mean_loss(nn.Linear(1, 1), loss_fn, batches, lambda images: images[..., :4, :4])
    assert value == pytest.approx(3.0)
    assert seen == [4, 4]


def test_costs_count_what_runs_and_leave_gradients() -> None:
    """By hand, per block and token: 2 (4 d^2 + 2 d m) for layers, 4 n d for attention; backward 2 and 2.5 times."""
    found = {}
    for depth in (2, 4):
        model = growing.hf_vit(depth)
        model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
        found[depth] = step_flops(model, growing.loss_fn, *growing.batch(0))
        assert found[depth] == step_flops(model, growing.loss_fn, *growing.batch(1))
        assert torch.equal(model.classifier.weight.grad, torch.ones_like(model.classifier.weight))
        assert model.vit.layers[0].mlp.fc1.weight.grad is None
        assert step_seconds(model, growing.loss_fn, *growing.batch(0), repeats=2) > 0
    tokens, width, inner = 17, 16, 32
    layers, attention = 2 * (4 * width**2 + 2 * width * inner), 4 * tokens * width
    assert (found[4] - found[2]) / 2 == tokens * (3 * layers + 3.5 * attention)


def test_a_search_needs_something_to_score_on() -> None:
    model = growing.hf_vit()
    for search, batches in (("one_shot", None), ("one_shot", []), ("zero_shot", [growing.batch(0)])):
        growth = growing.ViTGrowth(model, ViTGrowthConfig(search=search))
        optimizer = torch.optim.AdamW(model.parameters())
        with pytest.raises(ValueError, match=f"search='{search}' scores candidates on at least"):
            growth.prepare(
                model, num_training_steps=80, optimizer=optimizer, held_out=batches, loss_fn=growing.loss_fn
            )
