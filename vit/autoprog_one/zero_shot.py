"""Training-free choice of a sub-network: the core's scores, for candidates that differ in depth and resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from autoprog_diffusion.growth.units import Layout
from autoprog_diffusion.search.objective import Candidate, Score
from autoprog_diffusion.search.probe import leaving_no_trace, score_units
from autoprog_diffusion.search.recorded_calls import RecordedCall, calls_from_loss, take_gradients

from .one_shot import LossFn


BATCHES = 2  # that a score looks at: the fewest that tell signal from noise, as in the core


class SubNetworkScores:
    """Scores the sub-network that a model shows, one after the other.

    Unlike in fine-tuning, candidates are different networks, so each takes a probe of its own. The gain at a smaller
    resolution is what its gradient does for the loss at full resolution, on other images.

    Args:
        model: The bare model.
        layout: Its units.
        loss_fn: `loss_fn(model, images, targets) -> loss`.
        batches: At least two, at full resolution.
        resize: (images (N, C, H, W), pixels) -> images.
        full: The full resolution in pixels.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        loss_fn: LossFn,
        batches: Sequence[tuple[Tensor, Tensor]],
        resize: Callable[[Tensor, int], Tensor],
        full: int,
    ) -> None:
        self._model, self._layout, self._loss_fn, self._full = model, layout, loss_fn, full
        self._batches, self._resize = batches[:BATCHES], resize
        self._reference: tuple[tuple[int, ...], dict[str, Tensor]] | None = None

    def score(self, running: tuple[int, ...], resolution: int, cost: float) -> Score:
        """NTK condition number, ZiCo and expected gain of the sub-network that runs now.

        Args:
            running: Indices of its blocks.
            resolution: Its image side in pixels.
            cost: Of its step.
        """
        model, layout = self._model, self._layout
        units = [layout.inputs, *(layout.blocks[index] for index in running), layout.outputs]
        trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        trains &= {name for unit in units for name in unit.parameters}
        with leaving_no_trace(model, names=trains):
            reference = None if resolution == self._full else self._full_gradients(running)
            calls = self._calls(resolution)
            scores = score_units(model, layout, calls, trains, reference)
        candidate = Candidate(f"{len(running)} blocks at {resolution}", running, resolution)
        return scores.score(candidate, [unit.name for unit in units], cost)

    def _calls(self, resolution: int) -> list[RecordedCall]:
        device = next(self._model.parameters()).device
        sized = [(self._resize(x.to(device), resolution), y.to(device)) for x, y in self._batches]
        return calls_from_loss(self._model, lambda model, batch: self._loss_fn(model, *batch), sized, len(sized))

    def _full_gradients(self, running: tuple[int, ...]) -> dict[str, Tensor]:
        """Gradient of the first batch at full resolution; kept for the next candidate of the same blocks."""
        if self._reference is None or self._reference[0] != running:
            device = next(self._model.parameters()).device
            images, targets = self._batches[0]
            self._loss_fn(self._model, self._resize(images.to(device), self._full), targets.to(device)).backward()
            self._reference = running, take_gradients(self._model)
        return self._reference[1]
