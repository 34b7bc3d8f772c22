"""ZiCo scores and expected gains of every unit, from the mini-batch gradients of the user's own loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.growth.units import Layout

from .recorded_calls import RecordedCall


@dataclass(frozen=True)
class ParameterScore:
    """What the gradients of two or more mini-batches say about one parameter.

    Attributes:
        inverse_noise: sum_i mean_b |g_i| / std_b(g_i) over the entries whose gradients differ (ZiCo's inner sum; the
            population's standard deviation).
        gain: sum_i <g1_i, g2_i> / rms_i over two independent halves of the mini-batches: how much the loss falls, per
            unit of learning rate, under a preconditioned step. Noise has mean zero in it, so it does not count.
    """

    inverse_noise: float
    gain: float


def parameter_scores(
    model: nn.Module, calls: Sequence[RecordedCall], reference: dict[str, Tensor] | None = None
) -> dict[str, ParameterScore]:
    """Replay calls, each with the gradient the user's loss sent back, and score every parameter.

    One forward and one backward pass a call. All but the last call's gradients are kept as running sums; with two
    calls that is one copy of the parameters. Run it inside `probe.leaving_no_trace`.

    Args:
        model: The bare model.
        calls: At least two mini-batches.
        reference: Mean gradients, by name, that stand for the first half in the gain; for calls at another resolution,
            whose gradients are worth what they do for the loss at the resolution that was seen.

    Raises:
        SearchError: There are fewer than two calls.
    """
    if len(calls) < 2:
        raise SearchError(f"scores need the gradients of at least 2 mini-batches, {len(calls)} were recorded.")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    sums: dict[str, _Moments] = {}
    scores: dict[str, ParameterScore] = {}

    def last(parameter: Tensor) -> None:
        name, gradient = names[id(parameter)], parameter.grad
        if gradient is not None:
            moments = sums.pop(name, _Moments()).add(gradient)
            scores[name] = moments.score(None if reference is None else reference.get(name))
        parameter.grad = None  # nothing of the last gradient is kept

    for index, call in enumerate(calls):
        handles: list[Any] = []
        if index == len(calls) - 1:
            handles = [p.register_post_accumulate_grad_hook(last) for p in model.parameters() if p.requires_grad]
        try:
            call.run(model).backward(call.gradient)
        finally:
            for handle in handles:
                handle.remove()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums.setdefault(name, _Moments()).add(parameter.grad)
                parameter.grad = None
    return scores


def mean_gradients(model: nn.Module, calls: Sequence[RecordedCall]) -> dict[str, Tensor]:
    """Mean gradient over calls of every parameter, by name. Run it inside `probe.leaving_no_trace`."""
    for call in calls:
        call.run(model).backward(call.gradient / len(calls))
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    for parameter in model.parameters():
        parameter.grad = None
    return found


def unit_zico(model: nn.Module, layout: Layout, scores: dict[str, ParameterScore]) -> dict[str, float]:
    """ZiCo of every unit: the sum of log(inner sum) over its linear and convolution weights (they add up)."""
    layers = {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    return {
        unit.name: sum(_log(scores[name].inverse_noise) for name in unit.parameters if name in layers & scores.keys())
        for unit in layout.units
    }


def unit_gain(layout: Layout, scores: dict[str, ParameterScore]) -> dict[str, float]:
    """Expected gain of every unit: the sum over its parameters."""
    return {unit.name: sum(scores[n].gain for n in unit.parameters if n in scores) for unit in layout.units}


class _Moments:
    """Running moments over mini-batches of one parameter's gradient (Welford); sums begin with the second."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0
        self.deviation: Any = 0  # sum of squared distances from the mean
        self.absolute: Any = 0
        self.square: Any = 0
        self.even: Any = 0
        self._first: Tensor | None = None

    def add(self, gradient: Tensor) -> _Moments:
        """Take in the gradient of the next mini-batch."""
        gradient = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
        if self.count == 0:
            # Two mini-batches then cost one kept gradient, not four sums.
            self._first, self.count = gradient, 1
            return self
        if self._first is not None:
            first, self._first, self.count = self._first, None, 0
            self._sum(first)
        self._sum(gradient)
        return self

    def score(self, reference: Tensor | None = None) -> ParameterScore:
        """The scores of what was taken in; nothing without two mini-batches."""
        if self.count < 2:
            return ParameterScore(0.0, 0.0)
        std, rms = (self.deviation / self.count).sqrt(), (self.square / self.count).sqrt()
        inner = (self.absolute / self.count / std)[std > 0].sum()
        evens = (self.count + 1) // 2
        first = self.even / evens if reference is None else reference
        halves = first * ((self.mean * self.count - self.even) / (self.count - evens))
        return ParameterScore(float(inner), float((halves / rms)[rms > 0].sum()))

    def _sum(self, gradient: Tensor) -> None:
        if self.count % 2 == 0:
            self.even = self.even + gradient
        self.count += 1
        distance = gradient - self.mean
        self.mean = self.mean + distance / self.count
        self.deviation = self.deviation + distance * (gradient - self.mean)
        self.absolute = self.absolute + gradient.abs()
        self.square = self.square + gradient.square()


def _log(value: float) -> float:
    return math.log(value) if value > 0 else 0.0
