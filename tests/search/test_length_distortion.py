"""Curve scores by forward mode against one backward per channel, against differences, and in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.search.recorded_calls import RecordedCall
from autoprog_diffusion.vit.asvit import AsViT, Genotype
from autoprog_diffusion.vit.asvit.features import (
    FeatureModel,
    feature_condition_numbers,
    initial_states,
    without_norms,
)
from autoprog_diffusion.vit.asvit.length_distortion import CurveScore, angles, curve_scores, on_circle, random_plane

from .reference import literal_condition_number, literal_gram
from .reference_curves import (
    difference_derivatives,
    literal_curvature,
    literal_derivatives,
    literal_gauss_length,
    literal_length,
    literal_velocity,
)


SHAPE = (3, 32, 32)


def asvit() -> AsViT:
    """Two channels; weights large enough that the curve bends: a fresh network is nearly linear on the circle."""
    model = AsViT(Genotype.parse("8,2,3|4,1,2|4,1,4|4,1,6|16,2"), 5, 32).double()
    return loud(model)


def loud(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_normal_(module.weight, gain=1.5)
    return model


class Convolutional(nn.Module):
    """Something that is no transformer, with a LayerNorm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 4, stride=4), nn.LayerNorm(6)
        self.second, self.head = nn.Linear(6, 7), nn.Linear(7, 4)

    def pooled(self, images: Tensor) -> Tensor:
        x = self.norm(torch.tanh(self.first(images)).permute(0, 2, 3, 1))
        return torch.nn.functional.gelu(self.second(x)).mean((1, 2))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pooled(images))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    "asvit": (asvit, lambda model, x: model.features(x)[:, :6]),  # six channels: the literal Gauss map is quadratic
    "convolutional": (lambda: loud(Convolutional().double()), Convolutional.pooled),
}
models = pytest.mark.parametrize("name", MODELS)


@models
def test_one_pass_equals_one_backward_per_channel(name: str) -> None:
    build, features = MODELS[name]
    model, plane, theta = build(), random_plane(SHAPE, 3).double(), angles().double()
    (score,) = curve_scores(model, features, SHAPE, seed=3, second_order=True)
    run = FeatureModel(model, features)
    with without_norms(model):
        v, a = literal_derivatives(run, plane, theta)
        torch.testing.assert_close(literal_velocity(run, plane, theta), v)
        gauss = literal_gauss_length(run, plane, theta)
    assert score.length == pytest.approx(literal_length(v), rel=1e-9)
    assert score.curvature == pytest.approx(literal_curvature(v, a), rel=1e-7)
    assert score.gauss_length == pytest.approx(gauss, rel=1e-7)
    # The released code differentiates v over a constant: another number wherever the speed changes.
    detached = float((a.norm(dim=1) / v.norm(dim=1)).sum())
    assert abs(detached / gauss - 1) > 1e-3


@models
def test_one_pass_equals_finite_differences(name: str) -> None:
    build, features = MODELS[name]
    model, plane, theta = build(), random_plane(SHAPE, 0).double(), angles().double()
    (score,) = curve_scores(model, features, SHAPE, second_order=True)
    with without_norms(model):
        v, a = difference_derivatives(FeatureModel(model, features), plane, theta, step=2e-5)
    assert score.length == pytest.approx(literal_length(v), rel=1e-5)
    assert score.curvature == pytest.approx(literal_curvature(v, a), rel=1e-4)


class Ellipse(nn.Module):
    """A linear map of the plane it is given, so that the curve is an ellipse with known scores."""

    def __init__(self, plane: Tensor, axes: tuple[float, float]) -> None:
        super().__init__()
        self.rows = nn.Parameter(plane.flatten(1) * torch.tensor(axes).to(plane)[:, None])

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.rows.T


@pytest.mark.parametrize("axes", [(1.0, 1.0), (3.0, 0.5)])
def test_an_ellipse_has_the_scores_of_geometry(axes: tuple[float, float]) -> None:
    model = Ellipse(random_plane(SHAPE, 0).double(), axes)
    (score,) = curve_scores(model, lambda m, x: m(x), SHAPE, second_order=True)
    p, q = axes
    speed = [math.hypot(p * math.sin(t), q * math.cos(t)) for t in angles().double().tolist()]
    assert score.length == pytest.approx(sum(speed), rel=1e-6)
    assert score.curvature == pytest.approx(sum(p * q / s**3 for s in speed), rel=1e-5)
    assert score.gauss_length == pytest.approx(sum(p * q / s**2 for s in speed), rel=1e-5)


def test_scaling_the_features_scales_length_and_curvature_but_not_the_gauss_map() -> None:
    model = asvit()
    (one,) = curve_scores(model, AsViT.features, SHAPE, second_order=True)
    (ten,) = curve_scores(model, lambda m, x: 10 * m.features(x), SHAPE, second_order=True)
    assert ten.length == pytest.approx(10 * one.length)
    assert ten.curvature == pytest.approx(one.curvature / 10)
    assert ten.gauss_length == pytest.approx(one.gauss_length)


def test_the_circle_is_round_and_the_same_everywhere() -> None:
    plane = random_plane(SHAPE, 5)
    torch.testing.assert_close(plane.flatten(1) @ plane.flatten(1).T, torch.eye(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(on_circle(plane, angles()).flatten(1).norm(dim=1), torch.ones(10))
    torch.rand(3)
    assert torch.equal(plane, random_plane(SHAPE, 5))
    assert not torch.equal(plane, random_plane(SHAPE, 6))


@pytest.mark.parametrize("second_order", [False, True])
def test_all_initialisations_at_once_equal_one_by_one(second_order: bool) -> None:
    model = asvit()
    states = initial_states(model, lambda: loud(model), 3, seed=4)
    together = curve_scores(model, AsViT.features, SHAPE, states, seed=2, second_order=second_order)
    for index, state in enumerate(states):
        model.load_state_dict(state)
        (alone,) = curve_scores(model, AsViT.features, SHAPE, seed=2 + index, second_order=second_order)
        assert together[index].length == pytest.approx(alone.length, rel=1e-9)
        assert together[index].curvature == pytest.approx(alone.curvature, rel=1e-6, nan_ok=True)
    assert len({score.length for score in together}) == 3


def test_probing_leaves_no_trace() -> None:
    model = asvit().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules, random = list(model.modules()), torch.get_rng_state()
    states = initial_states(model, model.reset_parameters, 2, seed=0)
    curve_scores(model, AsViT.features, SHAPE, states, second_order=True)
    feature_condition_numbers(
        model, AsViT.features, torch.randn(3, *SHAPE, generator=torch.Generator()).double(), states
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [id(m) for m in model.modules()] == [id(m) for m in modules]
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_norms_come_back_after_an_error() -> None:
    model = Convolutional()
    with pytest.raises(ZeroDivisionError), without_norms(model):
        1 // (not isinstance(model.norm, nn.Identity))
    assert isinstance(model.norm, nn.LayerNorm)


@models
def test_the_condition_number_is_the_literal_one(name: str) -> None:
    build, features = MODELS[name]
    model, images = build(), torch.randn(6, *SHAPE).double()
    (found,) = feature_condition_numbers(model, features, images)
    wrapped = FeatureModel(model, features)
    names = [n for n, _ in wrapped.named_parameters() if "weight" in n]
    gram = literal_gram(wrapped, RecordedCall((images,), {}, torch.zeros(6)), names)
    assert found == pytest.approx(literal_condition_number(gram), rel=1e-6)


def test_degenerate_networks_have_no_finite_score() -> None:
    model, image = asvit(), torch.randn(1, *SHAPE).double()
    assert feature_condition_numbers(model, AsViT.features, image.expand(4, -1, -1, -1)) == [math.inf]
    assert math.isnan(feature_condition_numbers(model, AsViT.features, image * math.nan)[0])
    (still,) = curve_scores(model, lambda m, x: 0 * m.features(x), SHAPE, second_order=True)
    assert still.length == 0
    assert math.isnan(still.curvature)
    assert math.isnan(still.gauss_length)
    with torch.no_grad():
        model.embed.proj.weight.fill_(math.nan)
    (broken,) = curve_scores(model, AsViT.features, SHAPE)
    assert math.isnan(broken.length)


def test_second_order_scores_are_nan_unless_asked_for() -> None:
    (score,) = curve_scores(asvit(), AsViT.features, SHAPE)
    assert isinstance(score, CurveScore)
    assert math.isnan(score.curvature)
    assert math.isnan(score.gauss_length)


def test_bad_requests_are_errors() -> None:
    with pytest.raises(SearchError, match="1 points do not make a curve; take at least 2"):
        curve_scores(asvit(), AsViT.features, SHAPE, points=1)
    with pytest.raises(SearchError, match=r"features must have shape \(10, channels\), they have \(10, 1, 1, 16\)"):
        curve_scores(asvit(), AsViT.tokens, SHAPE)
