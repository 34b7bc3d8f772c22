"""AutoProg-One's choice: the candidate with the least loss * cost^w, with w fitted to the candidates themselves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import compress

import torch
from torch import Tensor, nn

from autoprog_diffusion.growth.flops import flop_counter
from autoprog_diffusion.growth.units import trainable_now
from autoprog_diffusion.growth.values import JSON
from autoprog_diffusion.search.probe import leaving_no_trace
from autoprog_diffusion.search.unit_timer import median_seconds

from .shapes import Shape


LossFn = Callable[[nn.Module, Tensor, Tensor], Tensor]
Batches = Sequence[tuple[Tensor, Tensor]]  # images (N, C, H, W) and targets
Values = Sequence[float]  # one for every candidate


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

    def to_dict(self) -> JSON:
        """The verdict as plain JSON types."""
        values = asdict(self)
        if math.isinf(self.score):
            values["score"] = str(self.score)
        return {**values.pop("shape"), **values}


def fit_exponent(losses: Values, costs: Values) -> float:
    """Exponent w = max(-a1, 0) of the power law loss = a2 cost^a1.

    The least-squares line of log loss over log cost, in closed form. The released code fits loss itself with
    scipy's iterative `curve_fit`; in logarithms the fit needs no starting point and no scipy, and weighs relative
    errors alike, which is what the score compares.

    Args:
        losses: Positive and finite, one per candidate.
        costs: Positive, in any unit, one per candidate.

    Example:
        >>> round(fit_exponent([4.0, 2.0, 1.0], [1.0, 4.0, 16.0]), 6)
        0.5
    """
    log_costs = [math.log(cost) for cost in costs]
    squares = statistics.pvariance(log_costs) * len(log_costs)
    if squares < 1e-12:  # one cost: nothing to trade
        return 0.0
    log_losses = [math.log(loss) for loss in losses]
    line = statistics.linear_regression(log_costs, log_losses)
    return max(-line.slope, 0.0)


def choose(shapes: Sequence[Shape], losses: Values, costs: Values) -> tuple[int, float, list[Verdict]]:
    """The candidate furthest below the trend of loss over cost.

    A loss that is not a positive number is left out of the fit and never wins while another is sound. Ties (within
    1e-12 relative) go to the cheaper candidate.

    Args:
        shapes: Candidates.
        losses: One per candidate.
        costs: One per candidate, in any unit.

    Returns:
        Index of the choice, w, and a verdict per candidate.
    """
    sound = [math.isfinite(loss) and loss > 0 for loss in losses]
    w = 0.0
    if any(sound):
        sound_losses = list(compress(losses, sound))
        sound_costs = list(compress(costs, sound))
        w = fit_exponent(sound_losses, sound_costs)
    most_expensive = max(costs)
    verdicts = []
    for shape, loss, cost, usable in zip(shapes, losses, costs, sound, strict=True):
        score = math.inf
        if usable:
            relative_cost = cost / most_expensive
            score = loss * relative_cost**w
        verdicts.append(Verdict(shape, loss, cost, score))
    best = min(verdict.score for verdict in verdicts)
    tied = [index for index, verdict in enumerate(verdicts) if verdict.score <= best * (1 + 1e-12)]
    return min(tied, key=costs.__getitem__), w, verdicts


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


def mean_loss(model: nn.Module, loss_fn: LossFn, batches: Batches, resize: Callable[[Tensor], Tensor]) -> float:
    """Mean of the loss over batches, which count by their size.

    Args:
        model: As it is to be evaluated.
        loss_fn: The mean over a batch.
        batches: Images (N, C, H, W) and targets, on any device.
        resize: Images (N, C, H, W) -> images of the resolution to evaluate at.
    """
    total = 0.0
    count = 0
    device = next(model.parameters()).device
    for images, targets in batches:
        resized = resize(images.to(device))
        loss = loss_fn(model, resized, targets.to(device))
        total += float(loss) * len(images)
        count += len(images)
    return total / count


def step_flops(model: nn.Module, loss_fn: LossFn, images: Tensor, targets: Tensor) -> float:
    """FLOPs of a forward and backward pass, per image; counted by torch, so the same in every run.

    Args:
        model: Left as it was.
        loss_fn: Its loss.
        images: (N, C, H, W); the first one is taken.
        targets: Of the images.
    """
    with _probing(model) as device, flop_counter() as counter:
        image = images[:1].to(device)
        target = targets[:1].to(device)
        loss_fn(model, image, target).backward()
        return float(counter.get_total_flops())


def step_seconds(model: nn.Module, loss_fn: LossFn, images: Tensor, targets: Tensor, repeats: int = 5) -> float:
    """Seconds of a forward and backward pass on a batch.

    Args:
        model: Left as it was.
        loss_fn: Its loss.
        images: (N, C, H, W).
        targets: Of the images.
        repeats: Passes whose median is taken, after one that is not counted.
    """
    with _probing(model) as device:
        images = images.to(device)
        targets = targets.to(device)

        def one_pass() -> None:
            loss_fn(model, images, targets).backward()

        return median_seconds(one_pass, device, repeats)


@contextmanager
def _probing(model: nn.Module) -> Iterator[torch.device]:
    """Passes of the trainable parameters that leave no trace; gives the model's device."""
    with leaving_no_trace(model, names=trainable_now(model)):
        yield next(model.parameters()).device
