"""Training-free choice of a sub-network: the core's scores, for candidates that differ in depth and resolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from autoprog_diffusion.growth.units import Layout, trainable_now
from autoprog_diffusion.search.objective import Candidate, Score
from autoprog_diffusion.search.probe import leaving_no_trace, score_units
from autoprog_diffusion.search.recorded_calls import RecordedCall, calls_from_loss, take_gradients

from .config import Ints
from .one_shot import Batches, LossFn


Resize = Callable[[Tensor, int], Tensor]  # images (N, C, H, W), pixels -> images
BATCHES = 2  # batches of a score: the fewest that tell signal from noise, as in the core


@dataclass
class SubNetworkScores:
    """Scores the sub-network that a model shows, one after the other.

    Unlike in fine-tuning, candidates are different networks, so each takes a probe of its own. The gain at a smaller
    resolution is the effect of its gradient on the loss at full resolution, on other images.

    Attributes:
        model: The bare model.
        layout: Its units.
        loss_fn: `loss_fn(model, images, targets) -> loss`.
        batches: At least two, at full resolution.
        resize: (images (N, C, H, W), pixels) -> images.
        full: The full resolution in pixels.
    """

    model: nn.Module
    layout: Layout
    loss_fn: LossFn
    batches: Batches
    resize: Resize
    full: int
    _reference: dict[Ints, dict[str, Tensor]] = field(default_factory=dict, init=False)

    def score(self, running: Ints, resolution: int, cost: float) -> Score:
        """NTK condition number, ZiCo and expected gain of the sub-network that runs now.

        Args:
            running: Indices of its blocks.
            resolution: Its image side in pixels.
            cost: Cost of its training step, in the unit of the search.
        """
        layout = self.layout
        blocks = [layout.blocks[index] for index in running]
        units = [layout.inputs, *blocks, layout.outputs]
        names: set[str] = set()
        for unit in units:
            names.update(unit.parameters)
        trainable = trainable_now(self.model) & names
        with leaving_no_trace(self.model, names=trainable):
            reference = None
            if resolution != self.full:
                reference = self._full_gradients(running)
            calls = self._calls(resolution)
            scores = score_units(
                self.model,
                layout=layout,
                calls=calls,
                trainable=trainable,
                reference=reference,
            )
        candidate = Candidate(f"{len(running)} blocks at {resolution}", running, resolution)
        return scores.score(candidate, units, cost)

    def _calls(self, resolution: int) -> list[RecordedCall]:
        """The model's calls on the first batches at a resolution (in pixels), with the gradients of its outputs."""

        def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
            images, targets = batch
            return self.loss_fn(model, images, targets)

        batches = [self._sized(batch, resolution) for batch in self.batches[:BATCHES]]
        return calls_from_loss(
            self.model,
            loss_fn=loss,
            batches=batches,
            count=len(batches),
        )

    def _full_gradients(self, running: Ints) -> dict[str, Tensor]:
        """Gradient of the first batch at full resolution; kept for the next candidate of the same blocks."""
        if running not in self._reference:
            images, targets = self._sized(self.batches[0], self.full)
            self.loss_fn(self.model, images, targets).backward()
            self._reference = {running: take_gradients(self.model)}
        return self._reference[running]

    def _sized(self, batch: tuple[Tensor, Tensor], resolution: int) -> tuple[Tensor, Tensor]:
        """A batch on the model's device, its images at a resolution in pixels."""
        device = next(self.model.parameters()).device
        images, targets = batch
        resized = self.resize(images.to(device), resolution)
        return resized, targets.to(device)
