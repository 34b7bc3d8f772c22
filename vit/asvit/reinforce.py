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
from .ranking import SIGNS, order
from .score_cache import Evaluation, ScoreCache
from .space import SearchSpace


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
    trace: tuple[str, ...]
    rewards: tuple[float, ...] = ()


def reinforce(
    space: SearchSpace,
    cache: ScoreCache,
    settings: ReinforceSettings,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
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
    logits = [(1e-3 * torch.randn(len(v), generator=generator)).requires_grad_() for v in space.choices.values()]
    optimizer = torch.optim.Adam(logits, lr=settings.learning_rate)
    history: list[Evaluation] = []
    trace: list[str] = []
    rewards: list[float] = []
    baseline = weight = 0.0
    for _ in progress(range(settings.steps)):
        probabilities = [torch.softmax(row.detach(), 0) for row in logits]
        picks = [int(torch.multinomial(row, 1, generator=generator)) for row in probabilities]
        trace.append(str(genotype_at(space, picks)))
        history.append(cache[trace[-1]])
        rewards.append(reward(history, settings.window))
        baseline = settings.baseline_decay * baseline + (1 - settings.baseline_decay) * rewards[-1]
        weight = settings.baseline_decay * weight + (1 - settings.baseline_decay)
        log_probability = torch.stack([torch.log_softmax(row, 0)[pick] for row, pick in zip(logits, picks)]).sum()
        optimizer.zero_grad()
        (-(rewards[-1] - baseline / weight) * log_probability).backward()
        optimizer.step()
    return Found(_most_probable(space, cache, logits, trace), tuple(trace), tuple(rewards))


def reward(history: Sequence[Evaluation], window: int) -> float:
    """Reward of the last network of `history`: the sum over its scores of their change in the better direction.

    A change is relative to the range of the score over the last `window` networks, so it lies in (-1, 1). The first
    network has reward 0. Ours: a degenerate network gets -1 for each score, the worst there is, and takes no part in
    the changes and ranges of the others (the released code lets its NTK of -1 pass for the best).
    """
    if history[-1].degenerate:
        return -float(len(SIGNS))
    sound = [item for item in history if not item.degenerate][-window:]
    if len(sound) < 2:
        return 0.0
    total = 0.0
    for name, sign in SIGNS.items():
        values = [getattr(item, name) for item in sound]
        total += sign * (values[-1] - values[-2]) / (max(values) - min(values) + 1e-6)
    return total


def genotype_at(space: SearchSpace, picks: Sequence[int]) -> Genotype:
    """The genotype with the `picks[i]`-th value of choice i."""
    return space.build({name: values[pick] for pick, (name, values) in zip(picks, space.choices.items())})


def _most_probable(space: SearchSpace, cache: ScoreCache, logits: Sequence[Tensor], trace: Sequence[str]) -> str:
    """The argmax of every distribution; where that is degenerate, the soundest network drawn by rank sum."""
    chosen = str(genotype_at(space, [int(row.argmax()) for row in logits]))
    if not cache[chosen].degenerate:
        return chosen
    drawn = [cache[genotype] for genotype in dict.fromkeys(trace)]
    first = drawn[order(drawn)[0]]
    if first.degenerate:
        raise SearchError(
            f"all {len(drawn)} networks drawn are degenerate (singular kernel, nan or constant features): check the "
            "images and the space, or draw more."
        )
    return first.genotype
