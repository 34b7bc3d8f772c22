"""Auto-scaling: from a topology to a family of networks, depth and width grown together by the training-free scores.

Source: As-ViT section 4. The tie rule is the intended one (see `ranking.best`); candidates that do not grow are left
out (the released code keeps them in its first step); a budget is a hard limit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from autoprog_diffusion.growth.errors import ConfigError, GrowthError, SearchError

from .cost import multiply_adds, parameter_count
from .genotype import MAX_WIDTH, SEED_DEPTHS, SEED_WIDTH, STAGES, Genotype
from .ranking import best
from .score_cache import ScoreCache


FACTORS = (1.05, 1.10, 1.15, 1.20)


class BudgetError(GrowthError):
    """A budget leaves no network."""


@dataclass(frozen=True)
class ScalingSettings:
    """What may be built.

    Attributes:
        budget_params: Parameters that no network may exceed, head included.
        budget_flops: Multiply-adds of one image that no network may exceed (the papers' "FLOPs").
        image_size: Side of the images, in pixels.
        num_classes: Outputs of the head.
        shrink: Scores are measured at 1/shrink of the width: 4 as published, 1 for the networks themselves.
        factors: Of the width, in one step; each together with one more block in one stage.
        width_multiple: What the width C must be a multiple of, for the hardware; 8 for most.
        head_dim_multiple: The same for the channels of one attention head.
        min_head_dim: Smallest number of channels of a head.
    """

    budget_params: float | None = None
    budget_flops: float | None = None
    image_size: int = 224
    num_classes: int = 1000
    shrink: int = 4
    factors: tuple[float, ...] = FACTORS
    width_multiple: int = 1
    head_dim_multiple: int = 1
    min_head_dim: int = 1

    def __post_init__(self) -> None:
        if self.budget_params is None and self.budget_flops is None:
            raise ConfigError("scaling needs an end: set budget_params (such as 30e6) or budget_flops (such as 5e9).")
        for name in ("shrink", "width_multiple", "head_dim_multiple", "min_head_dim"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name}={value} is not allowed: use a whole number of at least 1.")
        if min(self.factors, default=0) <= 1:
            raise ConfigError(f"factors={self.factors}: depth and width grow together, give factors above 1.")


@dataclass(frozen=True)
class Member:
    """A network of the family.

    Attributes:
        genotype: As a string, with depths and width.
        params: Number of parameters, head included.
        flops: Multiply-adds of one image.
        ntk: NTK condition number of its proxy (see `ScalingSettings.shrink`).
        length: Length distortion of its proxy.
        candidates: Networks it was chosen from.
        rejected: Of these, how many were over the budget.
    """

    genotype: str
    params: int
    flops: int
    ntk: float
    length: float
    candidates: int = 1
    rejected: int = 0


def scale(
    topology: Genotype,
    cache: ScoreCache,
    settings: ScalingSettings,
    accepted: Callable[[Member], object] = lambda member: None,
) -> list[Member]:
    """Grow a topology step by step until no candidate fits the budget; every step is a member of the family.

    Args:
        topology: Kernels, splits, expansions and heads; its depths and width are not used.
        cache: Scores proxies, and remembers.
        settings: Budget, candidates and constraints.
        accepted: Called with every member, for a progress bar.

    Raises:
        BudgetError: The smallest network is over the budget.
        ConfigError: The constraints leave none.
        SearchError: All candidates of a step are degenerate.
        GenotypeError: The network does not exist at this image size.
    """
    first = smallest(topology, settings)
    first.check(settings.image_size)
    params, flops = cost(first, settings)
    if over(params, flops, settings):
        raise BudgetError(
            f"the smallest network, {first}, has {params:,} parameters and {flops:,} multiply-adds at "
            f"{settings.image_size} pixels, over the budget ({_budget(settings)}): raise the budget, or lower the "
            "image size, the number of classes or the constraints on the width."
        )
    family = []
    member: Member | None = _member(first, cache, settings)
    while member is not None:
        family.append(member)
        accepted(member)
        member = _next(Genotype.parse(member.genotype, {}), cache, settings)
    return family


def _next(current: Genotype, cache: ScoreCache, settings: ScalingSettings) -> Member | None:
    """The best candidate within the budget; None where there is none.

    Raises:
        SearchError: All of them are degenerate.
    """
    every = candidates(current, settings)
    fitting = []
    evaluations = []
    for genotype in every:
        params, flops = cost(genotype, settings)
        if over(params, flops, settings):
            continue
        fitting.append(genotype)
        scored = proxy(genotype, settings.shrink)
        evaluations.append(cache[str(scored)])
    if not fitting:
        return None
    winner = best(evaluations)
    if winner is None:
        raise SearchError(
            f"all {len(fitting)} networks one step above {current} are degenerate (singular kernel, nan or constant "
            "features): the topology cannot be scaled by these scores; choose another, or other images."
        )
    member = _member(fitting[winner], cache, settings)
    return replace(member, candidates=len(every), rejected=len(every) - len(fitting))


def smallest(topology: Genotype, settings: ScalingSettings) -> Genotype:
    """One block a stage, and the smallest width of at least 32 that the constraints allow.

    Raises:
        ConfigError: They allow none.
    """
    step = width_step(topology, settings)
    first_heads = topology.heads // 8
    least = max(SEED_WIDTH, settings.min_head_dim * first_heads)
    width = math.ceil(least / step) * step
    genotype = replace(topology, depths=SEED_DEPTHS, width=width)
    if not fits_hardware(genotype, settings):
        raise ConfigError(
            f"min_head_dim={settings.min_head_dim} and head_dim_multiple={settings.head_dim_multiple} leave none: "
            f"no stage is wider than {MAX_WIDTH}, so heads of {topology.heads} have at most "
            f"{MAX_WIDTH // topology.heads} channels; lower them, or choose a topology with fewer heads."
        )
    return genotype


def width_step(topology: Genotype, settings: ScalingSettings) -> int:
    """What every width C must be a multiple of: heads, proxies and hardware all have to divide it.

    Args:
        topology: Gives the heads.
        settings: Constraints on widths and heads, and the proxies' share of the width.
    """
    heads = topology.heads // 8  # of the first stage; a head has C / (H / 8) channels there
    of_heads = heads * settings.head_dim_multiple
    of_proxy = settings.shrink * proxy_heads(topology.heads, settings.shrink) // 8
    return math.lcm(of_heads, settings.width_multiple, of_proxy)


def fits_hardware(genotype: Genotype, settings: ScalingSettings) -> bool:
    """Whether the channels of a head are as asked for in every stage, also where the width is capped."""
    for width, heads in zip(genotype.widths, genotype.stage_heads):
        channels = width // heads
        if channels < settings.min_head_dim or channels % settings.head_dim_multiple:
            return False
    return True


def candidates(current: Genotype, settings: ScalingSettings) -> list[Genotype]:
    """Every network with one more block in one stage and a larger width, each once, in order.

    Widths are rounded to the nearest multiple that is allowed; where all round to no growth, the next one is taken.

    Args:
        current: The network that grows.
        settings: Factors of the width, and constraints; the budget is not looked at.
    """
    step = width_step(current, settings)
    widths = set()
    for factor in settings.factors:
        steps = math.floor(current.width * factor / step + 0.5)
        if steps * step > current.width:
            widths.add(steps * step)
    if not widths:
        widths = {current.width + step}
    found = []
    for stage, width in itertools.product(range(STAGES), sorted(widths)):
        depths = list(current.depths)
        depths[stage] += 1
        grown = replace(current, depths=tuple(depths), width=width)
        if fits_hardware(grown, settings):
            found.append(grown)
    return found


def proxy(genotype: Genotype, shrink: int) -> Genotype:
    """The network that is scored in place of `genotype`: 1/shrink of its width.

    Ours: it has fewer heads too (at least the 8 that four stages need), so that heads keep their channels; the
    released code keeps the heads, which leaves 2 channels each at the seed.

    Args:
        genotype: The network.
        shrink: Divides the width; 1 for the network itself.
    """
    width = genotype.width // shrink
    heads = proxy_heads(genotype.heads, shrink)
    return replace(genotype, width=width, heads=heads)


def proxy_heads(heads: int, shrink: int) -> int:
    """Heads of the last stage of a proxy: 1/shrink of the heads, a multiple of 8 and at least 8."""
    if shrink == 1:
        return heads
    first = heads // (8 * shrink)  # heads of the first stage
    return 8 * max(1, first)


def cost(genotype: Genotype, settings: ScalingSettings) -> tuple[int, int]:
    """Parameters, and multiply-adds of one image."""
    params = parameter_count(genotype, settings.num_classes)
    flops = multiply_adds(genotype, settings.image_size, settings.num_classes)
    return params, flops


def over(params: int, flops: int, settings: ScalingSettings) -> bool:
    """Whether a network is beyond one of the budgets; a budget of None or 0 is no limit.

    Args:
        params: Parameters of the network.
        flops: Multiply-adds of one image.
        settings: The budgets.
    """
    most_params = settings.budget_params or math.inf
    most_flops = settings.budget_flops or math.inf
    return params > most_params or flops > most_flops


def _member(genotype: Genotype, cache: ScoreCache, settings: ScalingSettings) -> Member:
    """The network with its cost, and the scores of its proxy."""
    scored = proxy(genotype, settings.shrink)
    scores = cache[str(scored)]
    params, flops = cost(genotype, settings)
    return Member(
        str(genotype),
        params=params,
        flops=flops,
        ntk=scores.ntk,
        length=scores.length,
    )


def _budget(settings: ScalingSettings) -> str:
    """The budgets for a message, such as "budget_params 30,000,000"."""
    limits = []
    for name in ("budget_params", "budget_flops"):
        limit = getattr(settings, name)
        if limit is not None:
            limits.append(f"{name} {limit:,.0f}")
    return ", ".join(limits)
