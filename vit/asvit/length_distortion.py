"""Length distortion, curvature and Gauss-map length of the curve a network makes of a circle, by forward mode.

A circle h(theta) = U [cos theta; sin theta] of radius 1 in image space goes through the network. How much longer
and how much more bent the curve of features is than the circle measures expressivity before any training.

Source: As-ViT (arXiv 2202.11921), section 3.1, after Poole et al. 2016. The released code takes one backward pass for
every feature channel; here the derivative along the circle of all channels at all points is one forward pass with
tangents, and the second derivative one pass with tangents of tangents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.search.probe import leaving_no_trace

from .features import FeatureModel, Features, State, without_norms


POINTS = 10  # on the circle, both ends of [0, 2 pi] included, as published
# Numbers that all inputs of one vmapped pass may hold; larger passes gain nothing on a CPU and take memory.
BATCHED_NUMBERS = 2**20


@dataclass(frozen=True)
class CurveScore:
    """Of one initialisation and one circle. Plain sums over the points: comparable for one number of points only.

    Attributes:
        length: L_E = sum_j |v_j|, v the derivative of the features along the circle. Higher is more expressive.
        curvature: sum_j |a_j - (a_j.v_j / v_j.v_j) v_j| / |v_j|^2, a the second derivative; nan where not asked for.
        gauss_length: sum_j |d/dtheta (v_j / |v_j|)|; nan where not asked for.
    """

    length: float
    curvature: float = math.nan
    gauss_length: float = math.nan


def angles(points: int = POINTS) -> Tensor:
    """The published points on the circle, (points,)."""
    return torch.linspace(0, 2 * math.pi, points, device="cpu")


def random_plane(shape: Sequence[int], seed: int) -> Tensor:
    """Orthonormal basis U of a random plane in image space, (2, *shape); the same on every rank and device.

    Args:
        shape: Of one image.
        seed: Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(math.prod(shape), 2, generator=generator, device="cpu")
    basis, _ = torch.linalg.qr(directions)  # (numbers of an image, 2)
    return basis.T.reshape(2, *shape)


def on_circle(plane: Tensor, theta: Tensor) -> Tensor:
    """h(theta) = U [cos theta; sin theta], images (n, *shape).

    Args:
        plane: U, (2, *shape).
        theta: Angles, (n,).
    """
    coordinates = torch.stack([theta.cos(), theta.sin()], dim=1)  # (n, 2)
    return torch.einsum("nk,k...->n...", coordinates, plane)


def curve_scores(
    model: nn.Module,
    features: Features,
    shape: Sequence[int],
    states: Sequence[State] | None = None,
    *,
    seed: int = 0,
    points: int = POINTS,
    second_order: bool = False,
) -> list[CurveScore]:
    """Scores of every initialisation, each on a circle of its own.

    Args:
        model: Left as it was; its LayerNorms are the identity meanwhile.
        features: Of the model, (model, images (N, *shape)) -> (N, C). As-ViT: token mean before the last norm.
        shape: Of one image, such as (3, 224, 224).
        states: From `initial_states`; None for the model as it is.
        seed: The circle of the r-th initialisation is drawn from seed + r.
        points: On the circle.
        second_order: Also the curvature and the Gauss-map length, for about twice the cost.

    Returns:
        One score for every initialisation.

    Raises:
        SearchError: There are fewer than two points, or the features have the wrong shape.
    """
    if points < 2:
        raise SearchError(f"{points} points do not make a curve; take at least 2 (the paper: {POINTS}).")
    states = states or [model.state_dict()]
    some = next(model.parameters())
    theta = angles(points).to(some)
    planes = [random_plane(shape, seed + index).to(some) for index in range(len(states))]
    wrapped = FeatureModel(model, features)
    numbers = points * math.prod(shape)  # that the inputs of one initialisation hold
    together = max(1, BATCHED_NUMBERS // numbers)
    scores: list[CurveScore] = []
    with leaving_no_trace(model), without_norms(model), torch.no_grad():
        for start in range(0, len(states), together):
            part = slice(start, start + together)
            found = _derivatives(
                wrapped,
                states=states[part],
                planes=planes[part],
                theta=theta,
                second=second_order,
            )
            derivatives = [derivative.double() for derivative in found]
            scores += map(_score, *derivatives)
    return scores


def _derivatives(
    wrapped: FeatureModel, states: Sequence[State], planes: Sequence[Tensor], theta: Tensor, second: bool
) -> tuple[Tensor, ...]:
    """First (and second) derivative of the features along the circles: (states, points, C) each.

    Args:
        wrapped: The model, without norms.
        states: Initialisations.
        planes: Of the circle of every initialisation, (2, *shape) each.
        theta: Angles, (points,).
        second: Whether the second derivative is wanted.
    """
    kept = [name.removeprefix("model.") for name in wrapped.state_dict()]  # norms are not there
    ones = torch.ones_like(theta)

    def of_one(state: State, plane: Tensor) -> tuple[Tensor, ...]:
        def curve(at: Tensor) -> Tensor:
            images = on_circle(plane, at)
            return functional_call(wrapped, state, (images,))  # (points, C)

        def velocity(at: Tensor) -> Tensor:
            # A point's features depend on its own angle only, so one tangent of ones serves all points.
            return jvp(curve, (at,), (ones,))[1]

        if not second:
            return (velocity(theta),)
        return jvp(velocity, (theta,), (ones,))[:2]

    stacked = {}
    for name in kept:
        tensors = [state[name].to(theta.device) for state in states]
        stacked[f"model.{name}"] = torch.stack(tensors)
    with sdpa_kernel(SDPBackend.MATH):  # the only one with forward mode
        if len(states) == 1:  # large images: batching gains nothing there
            only = {name: tensor[0] for name, tensor in stacked.items()}
            return tuple(derivative[None] for derivative in of_one(only, planes[0]))
        return vmap(of_one)(stacked, torch.stack(list(planes)))


def _score(v: Tensor, a: Tensor | None = None) -> CurveScore:
    """Scores of one curve (As-ViT, section 3.1). One that stands still somewhere has no curvature: nan.

    Args:
        v: First derivative of the features, (points, C).
        a: Second derivative, (points, C); None where only the length is wanted.
    """
    speed = v.norm(dim=1)  # (points,)
    if a is None:
        return CurveScore(float(speed.sum()))
    # v / |v| turns by the part of a across v: no cancellation, unlike sqrt((v.v)(a.a) - (v.a)^2).
    along = (a * v).sum(1) / speed.square()  # in units of v
    parallel = v * along[:, None]
    across = (a - parallel).norm(dim=1)  # (points,)
    bend = across / speed.square()
    turn = across / speed
    sums = torch.stack([speed, bend, turn]).sum(1)
    length, curvature, gauss_length = sums.tolist()
    return CurveScore(length, curvature, gauss_length)
