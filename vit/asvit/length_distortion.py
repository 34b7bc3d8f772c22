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
    """Orthonormal basis U of a random plane in image space, (2, *shape); the same on every rank and device."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(math.prod(shape), 2, generator=generator, device="cpu"))
    return basis.T.reshape(2, *shape)


def on_circle(plane: Tensor, theta: Tensor) -> Tensor:
    """h(theta): plane (2, *shape), theta (n,) -> (n, *shape)."""
    return torch.einsum("nk,k...->n...", torch.stack([theta.cos(), theta.sin()], dim=1), plane)


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
    together = max(1, BATCHED_NUMBERS // (points * math.prod(shape)))
    scores: list[CurveScore] = []
    with leaving_no_trace(model), without_norms(model), torch.no_grad():
        for start in range(0, len(states), together):
            part = slice(start, start + together)
            found = _derivatives(wrapped, states[part], planes[part], theta, second=second_order)
            scores += map(_score, *(derivative.double() for derivative in found))
    return scores


def _derivatives(
    wrapped: FeatureModel, states: Sequence[State], planes: Sequence[Tensor], theta: Tensor, second: bool
) -> tuple[Tensor, ...]:
    """First (and second) derivative of the features along the circles at angles theta: (states, points, C) each."""
    kept = [name.removeprefix("model.") for name in wrapped.state_dict()]  # norms are not there
    ones = torch.ones_like(theta)

    def of_one(state: State, plane: Tensor) -> tuple[Tensor, ...]:
        def curve(at: Tensor) -> Tensor:
            return functional_call(wrapped, state, (on_circle(plane, at),))

        def velocity(at: Tensor) -> Tensor:
            return jvp(curve, (at,), (ones,))[1]

        # A point's features depend on its own angle only, so one tangent of ones serves all points.
        return jvp(velocity, (theta,), (ones,))[:2] if second else (velocity(theta),)

    stacked = {}
    for name in kept:
        stacked[f"model.{name}"] = torch.stack([state[name].to(theta.device) for state in states])
    with sdpa_kernel(SDPBackend.MATH):  # the only one with forward mode
        if len(states) == 1:  # large images: batching gains nothing there
            only = {name: tensor[0] for name, tensor in stacked.items()}
            return tuple(derivative[None] for derivative in of_one(only, planes[0]))
        return vmap(of_one)(stacked, torch.stack(list(planes)))


def _score(v: Tensor, a: Tensor | None = None) -> CurveScore:
    """Scores from v (n, C) and a (n, C). A curve that stands still somewhere has no curvature: nan."""
    speed = v.norm(dim=1)
    if a is None:
        return CurveScore(float(speed.sum()))
    # v / |v| turns by the part of a across v: no cancellation, unlike sqrt((v.v)(a.a) - (v.a)^2).
    along = (a * v).sum(1) / speed.square()
    across = (a - v * along[:, None]).norm(dim=1)
    sums = torch.stack([speed, across / speed.square(), across / speed]).sum(1)
    return CurveScore(*sums.tolist())
