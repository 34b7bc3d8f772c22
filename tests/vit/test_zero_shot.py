"""Scores of a sub-network inside a supernet are those of the shallow model it is, by the literal formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.units import build_layout
from autoprog_diffusion.search.recorded_calls import calls_from_loss
from autoprog_diffusion.vit.autoprog_one.elastic import ElasticModel
from autoprog_diffusion.vit.autoprog_one.groups import find_groups
from autoprog_diffusion.vit.autoprog_one.zero_shot import SubNetworkScores
from autoprog_diffusion.vit.resolution import enable_dynamic_resolution, resize_images

from ..search.reference import literal_condition_number, literal_gram, literal_zico
from . import growing


KEPT, FULL = (0, 2, 5), 16
BATCHES = [growing.batch(seed) for seed in (1, 2)]


def sized(resolution: int) -> list[tuple[Tensor, Tensor]]:
    return [(resize_images(images.double(), resolution, 4), targets) for images, targets in BATCHES]


def supernet() -> tuple[ElasticModel, Any]:
    model = growing.hf_vit().double()
    for parameter in model.parameters():  # larger than at the start, so that no kernel is singular by rounding
        nn.init.normal_(parameter, std=0.2)
    elastic = ElasticModel(model, find_groups(model))
    elastic.show((KEPT,))
    names = [name for group in elastic.groups for name in group.blocks]
    return elastic, build_layout(model, [[name] for name in names], [])


def shallow(deep: nn.Module) -> nn.Module:
    """The library's own model of the blocks that run."""
    model, state = growing.hf_vit(len(KEPT)).double(), deep.state_dict()
    for name in model.state_dict():
        source = name
        for new, old in enumerate(KEPT):
            if name.startswith(f"vit.layers.{new}."):
                source = name.replace(f"layers.{new}.", f"layers.{old}.", 1)
        model.state_dict()[name].copy_(state[source])
    enable_dynamic_resolution(model)
    return model.eval()


def gradients(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters())
    return dict(zip(names, torch.autograd.grad(growing.loss_fn(model, *batch), parameters)))


def literal_gain(model: nn.Module, resolution: int) -> float:
    """sum over weights of <g1, g2> / rms, g1 at full resolution on the first batch, g2 and rms at the candidate's."""
    reference = gradients(model, sized(FULL)[0])
    one, two = (gradients(model, batch) for batch in sized(resolution))
    total = 0.0
    for name, gradient in two.items():
        rms = ((one[name] ** 2 + gradient**2) / 2).sqrt()
        product = (reference[name] * gradient / rms)[rms > 0]
        total += float(product.sum())
    return total


@pytest.mark.parametrize("resolution", [8, FULL])
def test_scores_are_the_literal_ones_of_the_shallow_model(resolution: int) -> None:
    elastic, layout = supernet()
    disable = enable_dynamic_resolution(elastic.model)
    batches = [(images.double(), targets) for images, targets in BATCHES]

    def resize(images: Tensor, side: int) -> Tensor:
        return resize_images(images, side, 4)

    scores = SubNetworkScores(elastic.model, layout, growing.loss_fn, batches, resize, FULL)
    found = scores.score(elastic.running, resolution, cost=3.0)
    model = shallow(elastic.model)
    calls = calls_from_loss(model, lambda m, batch: growing.loss_fn(m, *batch), sized(resolution), 2)
    weights = [name for name, _ in model.named_parameters() if "weight" in name]
    layers = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    kernel = literal_gram(model, calls[-1], weights)
    assert found.kappa == pytest.approx(literal_condition_number(kernel), rel=1e-6)
    assert found.zico == pytest.approx(literal_zico(model, calls, sorted(layers)), rel=1e-6)
    assert found.gain == pytest.approx(literal_gain(model, resolution), rel=1e-6)
    assert (found.cost, found.candidate.blocks, found.degenerate) == (3.0, KEPT, False)
    disable()


def test_a_score_leaves_the_model_as_it_was() -> None:
    elastic, layout = supernet()
    model = elastic.model.train()
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    state = torch.random.get_rng_state()
    batches = [(images.double(), targets) for images, targets in BATCHES]
    scores = SubNetworkScores(model, layout, growing.loss_fn, batches, lambda images, side: images, FULL)
    first = scores.score(elastic.running, FULL, 1.0)
    assert scores.score(elastic.running, FULL, 1.0) == first
    assert model.training
    assert torch.equal(model.classifier.weight.grad, torch.ones_like(model.classifier.weight))
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert torch.equal(torch.random.get_rng_state(), state)
    assert elastic.running == KEPT
