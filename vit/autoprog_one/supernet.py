"""The elastic supernet of a stage: nested sub-networks, one drawn per step, evaluated from time to time."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .elastic import Positions
from .operators import GrowthMap, kept_positions
from .shapes import Grid, Shape


class Supernet:
    """The largest candidate of a stage, and the others as parts of it.

    Args:
        start: First optimizer step of the stage.
        length: Optimizer steps of the supernet phase.
        candidates: Shapes to choose from.
        maps: Per group, where the blocks of the largest candidate came from.
        grid: Gives the groups' depths.
        evaluations: How often the candidates are evaluated.
        seed: Of the draws; with the step's number it decides them, so that all ranks draw alike.
    """

    def __init__(
        self,
        start: int,
        length: int,
        candidates: Sequence[Shape],
        maps: Sequence[GrowthMap],
        grid: Grid,
        evaluations: int,
        seed: int,
    ) -> None:
        self.start, self.length, self.candidates = start, length, tuple(candidates)
        self.losses: list[list[float]] = []  # one row per evaluation, one value per candidate
        self._maps, self._grid, self._seed = tuple(maps), grid, seed
        # Evenly over the second half, its ends among them: early evaluations say little about trained candidates.
        half = length - length // 2
        count = min(evaluations, half + 1)
        self._evaluations = {length - half * i // max(count - 1, 1) for i in range(count)}

    def draw(self, step: int) -> Shape:
        """The candidate, all equally likely, that trains at optimizer step `step`."""
        return self.candidates[random.Random((self._seed << 40) + step).randrange(len(self.candidates))]

    def positions(self, depth: int) -> Positions:
        """Blocks of the supernet that a candidate of total `depth` runs, for every group."""
        return tuple(kept_positions(growth, d) for growth, d in zip(self._maps, self._grid.splits[depth]))

    def evaluates(self, step: int) -> bool:
        """Whether candidates are evaluated when `step` optimizer steps of the run are done."""
        return step - self.start in self._evaluations

    def ends(self, step: int) -> bool:
        """Whether the phase is over when `step` optimizer steps of the run are done."""
        return step - self.start >= self.length
