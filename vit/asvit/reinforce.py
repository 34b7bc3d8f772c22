"""Seed search by REINFORCE, as published, to compare with.

The reward of a network is how much its scores improve on those of the network sampled just before it, so it depends
on the order of the samples: a good network after a better one is punished. `evolution` compares with all that was seen
and is the default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoprog_diffusion.growth.errors import ConfigError, SearchError

from .genotype import Genotype
from .ranking import SIGNS, Evaluations, order
from .score_cache import Evaluation, ScoreCache
from .space import SearchSpace


Progress = Callable[[Iterable[int]], Iterable[int]]  # wraps the steps of a search, for a progress bar


@dataclass(frozen=True)
class ReinforceSettings:
    """Published values.

    Attributes:
        steps: Samples.
        learning_rate: Of Adam, on the logits.
        baseline_decay: Of the moving average of rewards.
        window: Samples over which a score's range is taken.
        seed: Of the initial logits and the samples.
    """

    steps: int = 500
    learning_rate: float = 0.08
    baseline_decay: float = 0.9
    window: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.window < 2:
            raise ConfigError(f"steps={self.steps} and window={self.window} must be at least 1 and 2.")


@dataclass(frozen=True)
class Found:
    """The end of a search.

    Attributes:
        genotype: The network chosen.
        trace: Genotypes in the order they were drawn, also those drawn again.
        rewards: REINFORCE's rewards, one per step; empty for other searches.
    """

    genotype: str
    trace: Sequence[str]
    rewards: Sequence[float] = ()


def reinforce(
    space: SearchSpace,
    cache: ScoreCache,
    settings: ReinforceSettings,
    progress: Progress = iter,
) -> Found:
    """Search with an independent categorical distribution per choice; the winner is the most probable network.

    Args:
        space: The networks.
        cache: Evaluates them, and remembers.
        settings: Steps, rates and seed.
        progress: Wraps the steps, for a progress bar.

    Raises:
        SearchError: Every network drawn is degenerate.

    Source: As-ViT section 3 and its released search: logits 1e-3 * N(0, 1), Adam, loss -(reward - baseline) * log pi,
    with a bias-corrected moving average of the rewards, the current one included, as the baseline.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    logits = _initial_logits(space, generator)
    optimizer = torch.optim.Adam(logits, lr=settings.learning_rate)
    decay = settings.baseline_decay
    baseline = 0.0
    weight = 0.0  # of all rewards in the moving average, for the correction of its bias
    history: list[Evaluation] = []
    rewards: list[float] = []
    for _ in progress(range(settings.steps)):
        picks = _draw(logits, generator)
        genotype = genotype_at(space, picks)
        history.append(cache[str(genotype)])
        gained = reward(history, settings.window)
        rewards.append(gained)
        baseline = decay * baseline + (1 - decay) * gained
        weight = decay * weight + (1 - decay)
        log_probabilities = [torch.log_softmax(row, 0)[pick] for row, pick in zip(logits, picks)]
        advantage = gained - baseline / weight
        loss = -advantage * torch.stack(log_probabilities).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trace = [item.genotype for item in history]
    modes = [int(row.argmax()) for row in logits]
    most_probable = genotype_at(space, modes)
    chosen = _sound_one(cache[str(most_probable)], history)
    return Found(chosen.genotype, trace, rewards)


def _initial_logits(space: SearchSpace, generator: torch.Generator) -> list[Tensor]:
    """One trainable row for every choice, (values of the choice,): nearly uniform probabilities."""
    logits = []
    for values in space.choices.values():
        row = 1e-3 * torch.randn(len(values), generator=generator)
        logits.append(row.requires_grad_())
    return logits


def _draw(logits: Sequence[Tensor], generator: torch.Generator) -> list[int]:
    """The index of one value for every choice, drawn with the probabilities that its row of logits gives.

    Args:
        logits: One row for every choice, (values of the choice,).
        generator: Of the draws.
    """
    picks = []
    for row in logits:
        probabilities = row.detach().softmax(0)
        drawn = torch.multinomial(probabilities, 1, generator=generator)
        picks.append(int(drawn))
    return picks


def reward(history: Evaluations, window: int) -> float:
    """Reward of the last network of `history`: the sum over its scores of their change in the better direction.

    A change is relative to the range of the score over the last `window` networks, so it lies in (-1, 1). The first
    network has reward 0. Ours: a degenerate network gets -1 for each score, the worst there is, and takes no part in
    the changes and ranges of the others (the released code lets its NTK of -1 pass for the best).

    Args:
        history: Networks in the order they were drawn.
        window: Networks, the last one included, over which a range is taken.
    """
    if history[-1].degenerate:
        return -float(len(SIGNS))
    sound = [item for item in history if not item.degenerate][-window:]
    if len(sound) < 2:
        return 0.0
    total = 0.0
    for name, sign in SIGNS.items():
        values = [getattr(item, name) for item in sound]
        spread = max(values) - min(values)
        change = values[-1] - values[-2]
        total += sign * change / (spread + 1e-6)
    return total


def genotype_at(space: SearchSpace, picks: Sequence[int]) -> Genotype:
    """The genotype of one value for every choice.

    Args:
        space: The choices.
        picks: For every choice, in the order of the space, the index of its value.
    """
    values = {}
    for (name, allowed), pick in zip(space.choices.items(), picks):
        values[name] = allowed[pick]
    return space.build(values)


def _sound_one(most_probable: Evaluation, history: Evaluations) -> Evaluation:
    """The most probable network; where that is degenerate, the soundest network drawn by rank sum.

    Raises:
        SearchError: All networks drawn are degenerate.
    """
    if not most_probable.degenerate:
        return most_probable
    drawn = list(dict.fromkeys(history))
    first = drawn[order(drawn)[0]]
    if first.degenerate:
        raise SearchError(
            f"all {len(drawn)} networks drawn are degenerate (singular kernel, nan or constant features): check the "
            "images and the space, or draw more."
        )
    return first
