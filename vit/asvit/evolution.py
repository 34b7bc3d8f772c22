"""Seed search by regularised evolution with rank sums: the default.

Source: regularised (aging) evolution, Real et al., AAAI 2019; the fitness is ours: the rank sum of both As-ViT scores
among everything evaluated so far. Unlike REINFORCE's reward it needs no scale, does not depend on what came just
before, and every step evaluates a network that is new.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass
from random import Random

from autoprog_diffusion.growth.errors import ConfigError, SearchError

from .genotype import Genotype
from .ranking import Evaluations, best, rank_sums
from .reinforce import Found, Progress
from .score_cache import Evaluation, ScoreCache
from .space import SearchSpace


_TRIES = 50  # draws of a network not seen before


@dataclass(frozen=True)
class EvolutionSettings:
    """How the population moves.

    Attributes:
        steps: Networks evaluated, the first population included.
        population: Networks alive; each step the oldest dies.
        tournament: Of these, drawn at random, the best has the child.
        seed: Of all draws.
    """

    steps: int = 500
    population: int = 50
    tournament: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.tournament <= self.population or self.steps < 1:
            raise ConfigError(
                f"steps={self.steps}, population={self.population}, tournament={self.tournament}: use at least one "
                "step and a tournament between 1 and the population."
            )


def evolve(
    space: SearchSpace,
    cache: ScoreCache,
    settings: EvolutionSettings,
    progress: Progress = iter,
) -> Found:
    """Search by mutation of one choice at a time; the winner has the best rank sum of all that were evaluated.

    Args:
        space: The networks.
        cache: Evaluates them, and remembers.
        settings: Steps, population and seed.
        progress: Wraps the steps, for a progress bar.

    Raises:
        SearchError: Every network is degenerate.
    """
    rng = Random(settings.seed)
    alive: deque[str] = deque(maxlen=settings.population)
    seen: dict[str, Evaluation] = {}
    trace: list[str] = []
    for step in progress(range(settings.steps)):
        if step < settings.population:
            child = _new(space.sample(rng), lambda _: space.sample(rng), seen)
        else:
            parent = _parent(
                alive,
                seen=list(seen.values()),
                rng=rng,
                tournament=settings.tournament,
            )
            # A neighbour; where it is known, a neighbour's neighbour, and so on.
            child = _new(space.mutate(parent, rng), lambda genotype: space.mutate(genotype, rng), seen)
        seen[child] = cache[child]
        trace.append(child)
        alive.append(child)
    evaluations = list(seen.values())
    winner = best(evaluations)
    if winner is None:
        raise SearchError(
            f"all {len(evaluations)} networks evaluated are degenerate (singular kernel, nan or constant features): "
            "check the images and the space, or use more steps."
        )
    return Found(evaluations[winner].genotype, trace)


def _parent(alive: deque[str], seen: Evaluations, rng: Random, tournament: int) -> Genotype:
    """The best of a random tournament, by rank sum among all networks evaluated so far; ties go to the first drawn.

    Args:
        alive: Genotypes of the population.
        seen: All networks evaluated so far.
        rng: Draws the tournament.
        tournament: Networks in it.
    """
    fitness = {}
    for item, rank_sum in zip(seen, rank_sums(seen)):
        fitness[item.genotype] = rank_sum
    size = min(tournament, len(alive))
    drawn = rng.sample(list(alive), size)
    winner = min(drawn, key=fitness.__getitem__)
    return Genotype.parse(winner)


def _new(genotype: Genotype, move: Callable[[Genotype], Genotype], seen: Container[str]) -> str:
    """A network that was not drawn before; in a space that is used up, one that was.

    Args:
        genotype: The first try.
        move: The next try from the last one.
        seen: Genotypes that were drawn.
    """
    for _ in range(_TRIES):
        if str(genotype) not in seen:
            break
        genotype = move(genotype)
    return str(genotype)
