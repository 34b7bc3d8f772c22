"""ZiCo scores and expected gains of every unit, from the mini-batch gradients of the user's own loss."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.errors import SearchError
from autoprog_diffusion.growth.units import Layout, trainable_now

from .recorded_calls import NamedTensors, RecordedCall, take_gradients


@dataclass(frozen=True)
class ParameterScore:
    """Statistics of one parameter's gradients over two or more mini-batches.

    Attributes:
        inverse_noise: ZiCo's inner sum, sum_i mean_b |g_i| / std_b(g_i) over the entries i whose gradients differ
            between mini-batches b; the standard deviation is the population's.
        gain: sum_i <g1_i, g2_i> / rms_i over two independent halves of the mini-batches: how much the loss falls, per
            unit of learning rate, under a preconditioned step. Noise does not count, since its mean is zero.
    """

    inverse_noise: float
    gain: float


ParameterScores = dict[str, ParameterScore]  # by the parameter's name
Values = dict[str, float]  # by the name of a unit or a parameter


def parameter_scores(
    model: nn.Module, calls: Sequence[RecordedCall], reference: NamedTensors | None = None
) -> ParameterScores:
    """Replay calls, each with the gradient that the user's loss sent back, and score every parameter.

    A call takes one forward and one backward pass. The gradients of all calls but the last are kept as running sums;
    with two calls that is one copy of the parameters. Run it in `probe.leaving_no_trace`.

    Args:
        model: The bare model.
        calls: At least two mini-batches.
        reference: Mean gradients, by name, that stand for the first half in the gain. Give them for calls at another
            resolution: a gradient is worth what it does for the loss at the resolution that was seen.

    Raises:
        SearchError: There are fewer than two calls.
    """
    if len(calls) < 2:
        raise SearchError(f"scores need the gradients of at least 2 mini-batches, {len(calls)} were recorded.")
    reference = reference or {}
    moments = defaultdict(_Moments)
    scores: ParameterScores = {}

    def score_and_free(name: str, parameter: Tensor) -> None:
        """Hook that runs when a parameter's gradient is complete."""
        if parameter.grad is not None:
            moments[name].add(parameter.grad)
            scores[name] = moments.pop(name).score(reference.get(name))
        parameter.grad = None

    *first_calls, last_call = calls
    for call in first_calls:
        call.replay(model)
        for name, gradient in take_gradients(model).items():
            moments[name].add(gradient)
    # During the last backward pass every parameter is scored as soon as its gradient is there, and both are freed.
    with ExitStack() as hooks:
        for name in trainable_now(model):
            hook = partial(score_and_free, name)
            hooks.enter_context(model.get_parameter(name).register_post_accumulate_grad_hook(hook))
        last_call.replay(model)
    return scores


def mean_gradients(model: nn.Module, calls: Sequence[RecordedCall]) -> NamedTensors:
    """Mean gradient over calls of every parameter, by name. Run it in `probe.leaving_no_trace`."""
    for call in calls:
        replace(call, gradient=call.gradient / len(calls)).replay(model)
    return take_gradients(model)


def unit_zico(model: nn.Module, layout: Layout, scores: ParameterScores) -> Values:
    """ZiCo of every unit (AutoProg-Zero): sum over its linear and convolution weights l of log(inner sum of l).

    An inner sum of zero, where no entry's gradients differ, adds nothing.
    """
    logs = {}
    for name, module in model.named_modules():
        weight = f"{name}.weight".removeprefix(".")
        if isinstance(module, (nn.Linear, nn.Conv2d)) and weight in scores:
            logs[weight] = math.log(scores[weight].inverse_noise or 1.0)
    return _sum_units(layout, logs)


def unit_gain(layout: Layout, scores: ParameterScores) -> Values:
    """Expected gain of every unit: the sum over its parameters."""
    return _sum_units(layout, {name: score.gain for name, score in scores.items()})


def _sum_units(layout: Layout, values: Values) -> Values:
    """Sum values of parameters, by name, over every unit."""
    return {unit.name: sum(values.get(name, 0.0) for name in unit.parameters) for unit in layout.units}


@dataclass
class _Moments:
    """Running sums over the mini-batch gradients of one parameter (Welford's algorithm)."""

    # The latest gradient waits: two mini-batches then cost one kept gradient instead of five sums.
    waiting: Tensor | None = None
    count: int = 0
    mean: Any = 0.0
    squared_distances: Any = 0.0  # from the mean
    absolute: Any = 0.0
    square: Any = 0.0
    even: Any = 0.0  # mini-batches 0, 2, ...: the first of two independent halves

    def add(self, gradient: Tensor) -> None:
        """Take in the gradient of the next mini-batch."""
        self._add_waiting()
        self.waiting = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))

    def score(self, reference: Tensor | None) -> ParameterScore:
        """Score what was taken in; zero without two mini-batches. `reference` stands for the first half."""
        self._add_waiting()
        count = self.count
        if count < 2:
            return ParameterScore(inverse_noise=0.0, gain=0.0)
        std = (self.squared_distances / count).sqrt()
        rms = (self.square / count).sqrt()
        evens = (count + 1) // 2
        if reference is None:
            reference = self.even / evens
        second_half = (self.mean * count - self.even) / (count - evens)
        ratios = self.absolute / count / std
        gains = reference * second_half / rms
        # Entries without noise, or without a gradient, say nothing.
        return ParameterScore(ratios[std > 0].sum().item(), gains[rms > 0].sum().item())

    def _add_waiting(self) -> None:
        """Take the waiting gradient into the sums."""
        gradient = self.waiting
        if gradient is None:
            return
        self.waiting = None
        if self.count % 2 == 0:
            self.even += gradient
        self.count += 1
        distance = gradient - self.mean
        self.mean += distance / self.count
        self.squared_distances += distance * (gradient - self.mean)
        self.absolute += gradient.abs()
        self.square += gradient.square()
