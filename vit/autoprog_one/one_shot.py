"""AutoProg-One's choice: the candidate with the least loss * cost^w, with w fitted to the candidates themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.flops import flop_counter
from autoprog_diffusion.search.probe import leaving_no_trace
from autoprog_diffusion.search.unit_timer import median_seconds

from .shapes import Shape


LossFn = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Verdict:
    """A candidate with its loss, cost and score at the decision.

    Attributes:
        shape: The candidate.
        loss: Mean over the evaluations.
        cost: Of a training step: FLOPs of one image, or seconds of a batch.
        score: loss * (cost / most expensive cost)^w; lower is better.
    """

    shape: Shape
    loss: float
    cost: float
    score: float

    def to_dict(self) -> dict[str, Any]:
        """The verdict as plain JSON types."""
        return {
            "depth": self.shape.depth,
            "resolution": self.shape.resolution,
            "loss": self.loss,
            "cost": self.cost,
            "score": self.score if math.isfinite(self.score) else str(self.score),
        }


def fit_exponent(losses: Sequence[float], costs: Sequence[float]) -> float:
    """Exponent w = max(-a1, 0) of the power law loss = a2 cost^a1.

    The least-squares line of log loss over log cost, in closed form. The released code fits loss itself with
    scipy's iterative `curve_fit`; in logarithms the fit needs no starting point and no scipy, and weighs relative
    errors alike, which is what the score compares.

    Example:
        >>> round(fit_exponent([4.0, 2.0, 1.0], [1.0, 4.0, 16.0]), 6)
        0.5
    """
    x, y = [math.log(cost) for cost in costs], [math.log(loss) for loss in losses]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    if spread < 1e-12:  # one cost: nothing to trade
        return 0.0
    return max(-sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / spread, 0.0)


def choose(
    shapes: Sequence[Shape], losses: Sequence[float], costs: Sequence[float]
) -> tuple[int, float, list[Verdict]]:
    """The candidate furthest below the trend of loss over cost.

    A loss that is not a positive number is left out of the fit and never wins while another is sound. Ties (within
    1e-12 relative) go to the cheaper candidate.

    Returns:
        Index of the choice, w, and a verdict per candidate.
    """
    sound = [(loss, cost) for loss, cost in zip(losses, costs) if math.isfinite(loss) and loss > 0]
    w = fit_exponent([loss for loss, _ in sound], [cost for _, cost in sound]) if sound else 0.0
    most_expensive = max(costs)
    verdicts = []
    for shape, loss, cost in zip(shapes, losses, costs, strict=True):
        score = math.inf
        if (loss, cost) in sound:
            score = loss * (cost / most_expensive) ** w
        verdicts.append(Verdict(shape, loss, cost, score))
    best = min(verdict.score for verdict in verdicts)
    # Equal up to rounding; an infinite best equals itself only.
    tied = [i for i, each in enumerate(verdicts) if each.score <= best * (1 + 1e-12) or each.score == best]
    return min(tied, key=lambda index: (costs[index], index)), w, verdicts


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradient inside a `with` block; modes and random states are put back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.random.fork_rng(), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def mean_loss(
    model: nn.Module, loss_fn: LossFn, batches: Sequence[tuple[Tensor, Tensor]], resize: Callable[[Tensor], Tensor]
) -> float:
    """Mean of the loss over batches (images (N, C, H, W), targets), resized first; batches count by their size."""
    total, count = 0.0, 0
    device = next(model.parameters()).device
    for images, targets in batches:
        loss = loss_fn(model, resize(images.to(device)), targets.to(device))
        total, count = total + float(loss) * len(images), count + len(images)
    return total / count


def step_flops(model: nn.Module, loss_fn: LossFn, images: Tensor, targets: Tensor) -> float:
    """FLOPs of a forward and backward pass, per image; counted by torch, so the same in every run."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    device = next(model.parameters()).device
    with leaving_no_trace(model, names=names), flop_counter() as counter:
        loss_fn(model, images[:1].to(device), targets[:1].to(device)).backward()
        return float(counter.get_total_flops())


def step_seconds(model: nn.Module, loss_fn: LossFn, images: Tensor, targets: Tensor, repeats: int = 5) -> float:
    """Seconds of a forward and backward pass on a batch: the median of `repeats`, after one that is not counted."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    device = next(model.parameters()).device
    images, targets = images.to(device), targets.to(device)
    with leaving_no_trace(model, names=names):
        return median_seconds(lambda: loss_fn(model, images, targets).backward(), device, repeats)
