"""Where a run stands in its epochs, where stages differ in the batches of an optimizer step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autoprog_diffusion.growth import GrowthPlan


@dataclass(frozen=True)
class Epochs:
    """Batches of optimizer steps. The last step of an epoch may have fewer, as in Diffusers' and timm's scripts.

    Attributes:
        batches: Of an epoch on this process.
        starts: First optimizer step of every stage.
        passes: Batches that a step of the stage asks for.

    Example:
        >>> epochs = Epochs(5, starts=(0, 2), passes=(1, 2))
        >>> [epochs.position(step) for step in range(5)]
        [(0, 0), (0, 1), (0, 2), (0, 4), (1, 0)]
    """

    batches: int
    starts: Sequence[int]
    passes: Sequence[int]

    def position(self, step: int) -> tuple[int, int]:
        """The epoch that a step begins in, and how many of its batches are done.

        Args:
            step: Optimizer steps done before it.
        """
        epoch = 0
        done = 0
        ends = [*self.starts[1:], step]
        for start, end, passes in zip(self.starts, ends, self.passes, strict=True):
            steps = min(end, step) - start
            if steps <= 0:
                break
            # The stage first ends the epoch that it finds begun.
            first = math.ceil((self.batches - done) / passes)
            if steps < first:
                done += steps * passes
                continue
            epochs, steps = divmod(steps - first, math.ceil(self.batches / passes))
            epoch += 1 + epochs
            done = steps * passes
        return epoch, done

    def passes_of(self, step: int) -> int:
        """Batches of an optimizer step.

        Args:
            step: Optimizer steps done before it.
        """
        stage = sum(start <= step for start in self.starts) - 1
        _, done = self.position(step)
        return min(self.passes[stage], self.batches - done)


def epochs_of(plan: GrowthPlan, *, batches: int, accumulation: int) -> Epochs:
    """Batches of the optimizer steps of a plan.

    Args:
        plan: Of the run.
        batches: Of an epoch on this process.
        accumulation: Batches of a step, where a stage does not say how many.
    """
    return Epochs(
        batches,
        starts=[stage.start for stage in plan.stages],
        passes=[stage.passes(accumulation) for stage in plan.stages],
    )
