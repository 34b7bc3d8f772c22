"""`ViTGrowthConfig`: how a vision transformer grows while it is pretrained. Pure data, no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.growth.values import (
    JSON,
    check_boundaries,
    check_choices,
    check_fields,
    check_increasing_resolutions,
    is_number,
    require,
)


Search = Literal["one_shot", "zero_shot", "random", "fixed"]
Operator = Literal["momentum", "interpolation", "stacking", "identity", "random"]
OptimizerState = Literal["copy", "average", "fresh"]
Cost = Literal["flops", "measured"]
Objective = Literal["gain_per_cost", "rank_vote"]
Ints = tuple[int, ...]

_CHOICES = {
    "search": Search,
    "operator": Operator,
    "optimizer_state": OptimizerState,
    "search_cost": Cost,
    "search_objective": Objective,
}


@dataclass(frozen=True)
class ViTGrowthConfig:
    """How a vision transformer grows in depth and resolution (AutoProg-One, arXiv 2203.14509 and 2410.00350).

    Attributes:
        num_stages: Number of stages; the last one trains the whole model at full resolution.
        min_depth: Fraction of the blocks in the smallest network, in (0, 1]; the grid of depths is linear from there.
        resolutions: Image side of every stage in pixels, never decreasing; `None` rises linearly from
            `min_resolution` times the model's own size, in multiples of the patch.
        min_resolution: Fraction of the model's image side in the first stage, where `resolutions` is `None`.
        search: `fixed` follows the grid. `one_shot`, the paper's, trains an elastic supernet at the start of a stage
            and takes the candidate with the best loss for its cost; `zero_shot` chooses by the core's training-free
            scores; `random` draws. Candidates of these three are the same; the last stage is never searched. No
            search did better than the grid (benchmarks/vit_growth, vit_cifar).
        operator: How weights of a deeper network come from a shallower one (see `operators.growth_map`). `stacking`
            repeats the network; `momentum`, the paper's, is MoGrow: interpolation of the moving average. Stacking
            ended more accurate in every comparison (benchmarks/vit_growth, vit_cifar).
        optimizer_state: Start of the optimizer state of an inserted block: a `copy` of its source's, the `average` of
            its source's and the next block's, or `fresh`, none. Measured in short runs, `fresh` ends with a loss up to
            0.02 lower (benchmarks/vit_optimizer_state/run.py); whether that lasts in long ones is not known.
        search_steps: Length of the supernet phase: steps, or a fraction in (0, 1) of the stage.
        evaluations: How often candidates are evaluated, spread evenly over the second half of the supernet phase (the
            paper: the last of two epochs, 5 times).
        search_cost: `flops` counts, so that a run repeats bit for bit; `measured` times steps, as in the paper.
        search_objective: Objective of the `zero_shot` search.
        ema_decay: Decay of the moving average of the weights, in [0, 1). The first steps average less,
            min(ema_decay, (1 + n) / (10 + n)), so that short runs forget their start.
        boundaries: First optimizer step of stages 1, 2, ... (num_stages - 1 values), or fractions of the run in
            (0, 1). `None` spaces them evenly.
        strides: Pixels from one token to the next in every stage, falling to the model's own, for progressive
            re-tokenization (see `retokenize`); None is the model's own. Only with the fixed schedule.
        seed: Seed of sub-network draws, of the `random` search and of newly initialised blocks.

    Raises:
        ConfigError: A value is out of range; the message names it and what is allowed.

    Example:
        >>> ViTGrowthConfig(num_stages=2, resolutions=(112, 224)).to_dict()["resolutions"]
        [112, 224]
    """

    num_stages: int = 4
    min_depth: float = 0.5
    resolutions: Ints | None = None
    min_resolution: float = 0.5
    search: Search = "fixed"
    operator: Operator = "stacking"
    optimizer_state: OptimizerState = "copy"
    search_steps: int | float = 0.1
    evaluations: int = 5
    search_cost: Cost = "flops"
    search_objective: Objective = "gain_per_cost"
    ema_decay: float = 0.998
    boundaries: tuple[int | float, ...] | None = None
    strides: tuple[int | None, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        # JSON gives lists; tuples keep the dataclass hashable.
        for name in ("resolutions", "boundaries", "strides"):
            value = getattr(self, name)
            if value is not None:
                require(
                    self,
                    name=name,
                    allowed=isinstance(value, (list, tuple)),
                    hint="give a list of values",
                )
                object.__setattr__(self, name, tuple(value))
        check_choices(self, _CHOICES)
        _check_numbers(self)
        _check_resolutions(self)
        check_boundaries(self.boundaries, self.num_stages)
        _check_strides(self)

    def to_dict(self) -> JSON:
        """The configuration as plain JSON types."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: JSON) -> ViTGrowthConfig:
        """The configuration that `to_dict` wrote.

        Raises:
            ConfigError: A key is not a field of `ViTGrowthConfig`.
        """
        check_fields(cls, values)
        return cls(**values)


def _check_numbers(config: ViTGrowthConfig) -> None:
    for name, least in {"num_stages": 1, "evaluations": 1, "seed": 0}.items():
        value = getattr(config, name)
        require(
            config,
            name=name,
            allowed=is_number(value, int) and value >= least,
            hint=f"use a whole number of at least {least}",
        )
    for name in ("min_depth", "min_resolution"):
        value = getattr(config, name)
        require(
            config,
            name=name,
            allowed=is_number(value) and 0 < value <= 1,
            hint="use a fraction in (0, 1]",
        )
    decay, steps = config.ema_decay, config.search_steps
    require(
        config,
        name="ema_decay",
        allowed=is_number(decay) and 0 <= decay < 1,
        hint="use a decay in [0, 1)",
    )
    counted = is_number(steps, int) and steps >= 1
    share = isinstance(steps, float) and 0 < steps < 1
    require(
        config,
        name="search_steps",
        allowed=counted or share,
        hint="use steps (from 1), or a fraction in (0, 1)",
    )


def _check_resolutions(config: ViTGrowthConfig) -> None:
    sizes = config.resolutions
    if sizes is None:
        return
    if len(sizes) != config.num_stages:
        raise ConfigError(
            f"resolutions={sizes} has {len(sizes)} values for num_stages={config.num_stages}: give one per stage."
        )
    pixels = all(is_number(size, int) and size > 0 for size in sizes)
    require(
        config,
        name="resolutions",
        allowed=pixels,
        hint="give whole numbers of pixels",
    )
    check_increasing_resolutions(sizes, ConfigError)


def _check_strides(config: ViTGrowthConfig) -> None:
    if config.strides is None:
        return
    count = config.num_stages
    require(
        config,
        name="strides",
        allowed=len(config.strides) == count,
        hint=f"give one for each of the {count} stages",
    )
    if config.search != "fixed":
        raise ConfigError(f'strides follow a fixed schedule, but search="{config.search}": use search="fixed".')
