"""The elastic supernet of a stage: nested sub-networks, one drawn per step, evaluated from time to time."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from .elastic import Positions
from .operators import GrowthMap, kept_positions
from .shapes import Grid, Shape


@dataclass
class Supernet:
    """The largest candidate of a stage, and the others as parts of it.

    Attributes:
        start: First optimizer step of the stage.
        length: Optimizer steps of the supernet phase.
        candidates: Shapes to choose from.
        maps: Per group, the origin of the blocks of the largest candidate.
        grid: Gives the groups' depths.
        evaluations: How often the candidates are evaluated, at most.
        seed: Seed of the draws. With the step's number it decides them, so that all ranks draw alike.
        losses: One row per evaluation so far, one value per candidate.
    """

    start: int
    length: int
    candidates: list[Shape]
    maps: list[GrowthMap]
    grid: Grid
    evaluations: int
    seed: int
    losses: list[list[float]] = field(default_factory=list)

    def draw(self, step: int) -> Shape:
        """The candidate, all equally likely, that trains at optimizer step `step`."""
        index = random.Random((self.seed << 40) + step).randrange(len(self.candidates))
        return self.candidates[index]

    def positions(self, depth: int) -> Positions:
        """Blocks of the supernet that a candidate of total `depth` runs, for every group."""
        kept = []
        for growth, group_depth in zip(self.maps, self.grid.splits[depth]):
            kept.append(kept_positions(growth, group_depth))
        return tuple(kept)

    def evaluates(self, step: int) -> bool:
        """Whether candidates are evaluated when `step` optimizer steps of the run are done.

        Evenly over the second half, its ends among them: early evaluations say little about trained candidates.
        """
        half = self.length - self.length // 2
        count = min(self.evaluations, half + 1)
        gaps = max(count - 1, 1)
        done = step - self.start  # steps of the phase
        for index in range(count):
            from_end = half * index // gaps
            if done == self.length - from_end:
                return True
        return False

    def ends(self, step: int) -> bool:
        """Whether the phase is over when `step` optimizer steps of the run are done."""
        return step - self.start >= self.length
