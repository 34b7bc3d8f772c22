"""`GrowthConfig`: the only thing a user fills in. Pure data, no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import ConfigError


Order = Literal["interleaved", "suffix", "prefix"]
Direction = Literal["unfreeze", "freeze"]
Search = Literal["none", "zero_shot"]
Objective = Literal["rank_vote", "gain_per_cost", "random", "fixed"]
Cost = Literal["flops", "measured"]
EmbeddingInit = Literal["zero", "normal", "carry"]

Resolution = float | int  # a fraction (float, at most 1.0) of the data's size, or pixels (int)
JSON = dict[str, Any]  # an object of plain JSON types


MOST_STAGES = 1000


@dataclass(frozen=True)
class GrowthConfig:
    """How many blocks of a model train, and when, while it is fine-tuned.

    The defaults are what measured best: freezing from the input on, in four stages. `GrowthConfig.autoprog_zero()` is
    the method of AutoProg-Zero (arXiv 2410.00350).

    Attributes:
        num_stages: Number of training stages; those that a short run or a small model has no room for are merged.
        order: Blocks of a stage that trains some of them. `suffix` takes those nearest the output (the frozen front
            then runs without gradient), `prefix` those nearest the input, `interleaved` every L-th block (the paper).
        min_trainable: Fraction of the blocks trained in the smallest stage, in (0, 1]; it changes linearly to 1.
        direction: `freeze` starts with the whole model and ends with the smallest stage, so that frozen blocks are
            trained ones (after FreezeOut, arXiv 1706.04983); pass `growth.ema_parameters()` to Diffusers' `EMAModel`.
            `unfreeze` starts with the smallest stage and ends with the whole model (the paper). `None` freezes with a
            fixed schedule, and unfreezes with a search.
        stage_embedding: Whether to train a Stage Identifier embedding beside the model (folded away by `fold`). `None`
            trains one unless the model has no place for it, or its timestep embedder is frozen: a LoRA checkpoint
            would not hold the fold.
        stage_embedding_init: `zero` leaves the pretrained function unchanged, `normal` is the paper's N(0, 0.02^2),
            `carry` starts every row but the first from the trained row before it.
        stage_dropout: Probability, per sample, of replacing the stage's embedding by a null row (the paper: 0.1).
        ema_decay: Decay of the stage embedding's own moving average; set it to the EMA decay of your model so that
            `fold` writes the averaged row. `None` folds the raw row.
        resolutions: Per stage, either fractions in (0, 1] of the data's size or sizes in pixels; never decreasing.
        resolution_multiple: What every image side must be a multiple of: VAE factor times the denoiser's patch size
            or down-sampling.
        boundaries: First optimizer step of stages 1, 2, ... (num_stages - 1 values), or fractions of the training in
            (0, 1). `None` spaces them evenly.
        rewarm_steps: Optimizer steps over which the learning rate of newly opened blocks rises from 1/n of the
            schedule's to all of it; 0 for none. The optimizer is then built from `growth.parameter_groups()`.
        search: `none` follows the fixed schedule; `zero_shot` chooses every stage but the last by training-free
            scores, after a warm-up of `search_batches` steps (one more stage; only the output head trains in it).
        search_objective: `rank_vote` is the paper's; `gain_per_cost` the expected loss decrease per cost; `random` and
            `fixed` are baselines.
        search_cost: `flops` counts, the same in every run; `measured` times every unit on your machine and batch.
        search_orders: Orders whose levels are candidates.
        search_candidates: Sets of block indices to choose from instead.
        search_batches: Training calls a search replays, at least 2.
        search_seed: Of the `random` objective.

    Raises:
        ConfigError: A value is out of range; the message names it and what is allowed.

    Example:
        >>> GrowthConfig().freezes, GrowthConfig.autoprog_zero().freezes
        (True, False)
    """

    num_stages: int = 4
    order: Order = "suffix"
    min_trainable: float = 0.25
    direction: Direction | None = None
    stage_embedding: bool | None = None
    stage_embedding_init: EmbeddingInit = "zero"
    stage_dropout: float = 0.0
    ema_decay: float | None = None
    resolutions: tuple[Resolution, ...] | None = None
    resolution_multiple: int = 8
    boundaries: tuple[float | int, ...] | None = None
    rewarm_steps: int = 0
    search: Search = "none"
    search_objective: Objective = "gain_per_cost"
    search_cost: Cost = "flops"
    search_orders: tuple[Order, ...] = ("interleaved", "suffix", "prefix")
    search_candidates: tuple[tuple[int, ...], ...] | None = None
    search_batches: int = 2
    search_seed: int = 0

    def __post_init__(self) -> None:
        # JSON gives lists; the dataclass stays hashable.
        converters = {"resolutions": as_resolution, "search_candidates": _as_candidate}
        for name in ("resolutions", "boundaries", "search_orders", "search_candidates"):
            values: Any = getattr(self, name)
            if values is not None:
                is_list = isinstance(values, Iterable) and not isinstance(values, str)
                require(self, name, is_list, "give a list of values")
                convert: Any = converters.get(name)
                object.__setattr__(self, name, tuple(map(convert, values) if convert else values))
        _check_choices(self)
        _check_ranges(self)
        _check_direction(self)
        _check_resolutions(self)
        check_boundaries(self.boundaries, self.num_stages)

    @classmethod
    def autoprog_zero(cls, **overrides: Any) -> GrowthConfig:
        """AutoProg-Zero as published (arXiv 2410.00350), with `overrides` in place of some of its settings.

        Values are those of the code released for DiT (github.com/changlin31/AutoProg-Zero): four stages from a quarter
        of the blocks, interleaved, and of the resolution to all of it; before every stage but the last a vote of the
        ranks by time, NTK condition number and ZiCo; a stage embedding initialised from N(0, 0.02^2), dropped with
        probability 0.1. Set `ema_decay` to your model's (theirs: 0.9999).

        It departs from that code where the code departs from the paper or cannot be right:

        * Level k opens the blocks with index mod 4 < k. Their match by substring opens 20 and 26 of DiT-XL's 28 blocks
          at levels 2 and 3 instead of 14 and 21.
        * All ranks take one decision; theirs vote each for itself.
        * Invalid condition numbers (not finite, or negative by rounding) are ranked worst; theirs can win.
        * Time is measured at the training batch's size; theirs at 16 samples divided by the number of ranks.

        And two differences of our own: every later level is a candidate, not only the next one; the search watches
        `search_batches` training steps first, in which only the output head trains.

        Raises:
            ConfigError: An override is not allowed, or is not a field.
        """
        settings: JSON = {
            "num_stages": 4,
            "order": "interleaved",
            "min_trainable": 0.25,
            "direction": "unfreeze",
            "stage_embedding": True,
            "stage_embedding_init": "normal",
            "stage_dropout": 0.1,
            "resolutions": (0.25, 0.5, 0.75, 1.0),
            "search": "zero_shot",
            "search_objective": "rank_vote",
            "search_cost": "measured",
            "search_orders": ("interleaved",),
        }
        return cls.from_dict(settings | overrides)

    @property
    def freezes(self) -> bool:
        """Whether the fixed schedule freezes blocks stage by stage, rather than opening them."""
        if self.direction is None:
            return self.search == "none"
        return self.direction == "freeze"

    @property
    def plan_stages(self) -> int:
        """Stages of the plan: `num_stages`, and one more for the warm-up of a search."""
        return self.num_stages + (self.search != "none")

    def to_dict(self) -> JSON:
        """The configuration as plain JSON types."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: JSON) -> GrowthConfig:
        """The configuration that `to_dict` wrote.

        Raises:
            ConfigError: A key is not a field of `GrowthConfig`.
        """
        check_fields(cls, values)
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Write the configuration as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> GrowthConfig:
        """Read a configuration that `save` wrote.

        Raises:
            ConfigError: The file is missing, not JSON, or holds unknown fields.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the growth configuration {path}: {error}.") from error
        except ValueError as error:  # not JSON, or not text at all
            raise ConfigError(f"{path} is not a JSON file: {error}.") from error
        return cls.from_dict(values)


def _as_candidate(value: Any) -> tuple[int, ...]:
    """One of `search_candidates`: indices of blocks."""
    is_list = isinstance(value, Iterable) and not isinstance(value, str)
    indices: tuple[Any, ...] = tuple(value) if is_list else ()
    if not is_list or not all(is_number(index, int) and index >= 0 for index in indices):
        raise ConfigError(f"search_candidates: {value!r} is not allowed: give a list of block numbers for each.")
    return indices


def check_fields(cls: Any, values: Any) -> None:
    """Raise `ConfigError` where `values` is no dictionary, or holds a key that is not a field of dataclass `cls`."""
    if not isinstance(values, dict):
        raise ConfigError(f"a growth configuration is a JSON object of fields and values, not {values!r}.")
    known = {field.name for field in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{cls.__name__} has no field(s) {unknown}; fields are {sorted(known)}.")


def check_choices(config: Any, choices: dict[str, Any]) -> None:
    """Raise `ConfigError` where a field of `config` is none of its literals, `choices[name]`."""
    for name, kind in choices.items():
        allowed = get_args(kind)
        require(config, name, getattr(config, name) in allowed, f"use one of {allowed}")


def check_boundaries(boundaries: tuple[float | int, ...] | None, num_stages: int) -> None:
    """Raise `ConfigError` unless there is one boundary before every stage but the first, in increasing order."""
    if boundaries is None:
        return
    if len(boundaries) != num_stages - 1:
        raise ConfigError(
            f"boundaries={boundaries} has {len(boundaries)} values for num_stages={num_stages}: give the first step "
            f"of every stage but the first, {num_stages - 1} values."
        )
    fractions = all(isinstance(bound, float) and 0 < bound < 1 for bound in boundaries)
    steps = all(is_number(bound, int) and bound > 0 for bound in boundaries)
    if not fractions and not steps:
        raise ConfigError(f"boundaries={boundaries}: use all steps (whole numbers from 1) or all fractions in (0, 1).")
    if list(boundaries) != sorted(set(boundaries)):
        raise ConfigError(f"boundaries={boundaries} do not increase: a stage must begin after the one before it.")


def as_resolution(value: Resolution, error: type[ValueError] = ConfigError) -> Resolution:
    """A stage's resolution as a fraction (float, at most 1.0) or as pixels (int).

    Raises:
        ValueError: As `error`; the value is not positive, or is above 1 and not a whole number of pixels.
    """
    if not is_number(value) or not 0 < value < math.inf:
        raise error(f"resolution {value!r} is not allowed: use a fraction in (0, 1] or a whole number of pixels.")
    if value <= 1:
        return float(value)
    if value != int(value):
        raise error(f"resolution {value!r} is not allowed: above 1 it is pixels and must be a whole number.")
    return int(value)


def check_increasing_resolutions(values: tuple[Resolution, ...], error: type[ValueError]) -> None:
    """Raise `error` where fractions and pixels are mixed or a later stage is smaller than an earlier one."""
    if len(set(map(type, values))) > 1:
        raise error(f"resolutions {values} mix fractions (up to 1) and pixels (above 1): use one kind for all stages.")
    if list(values) != sorted(values):
        raise error(f"resolutions {values} decrease: growth is monotone, give them in non-decreasing order.")


def is_number(value: object, kinds: Any = (int, float)) -> bool:
    """Whether a value is one of `kinds`; a bool is an int to Python, but no number to a reader."""
    return isinstance(value, kinds) and not isinstance(value, bool)


def require(config: Any, name: str, allowed: bool, hint: str) -> None:
    """Raise `ConfigError` about the value of a field unless it is `allowed`; `hint` says what is."""
    if not allowed:
        raise ConfigError(f"{name}={getattr(config, name)!r} is not allowed: {hint}.")


def _check_choices(config: GrowthConfig) -> None:
    """Check the fields that take one of a few words."""
    choices = {"order": Order, "search": Search, "stage_embedding_init": EmbeddingInit}
    choices |= {"search_objective": Objective, "search_cost": Cost}
    check_choices(config, choices)
    if config.direction is not None:
        check_choices(config, {"direction": Direction})
    orders = get_args(Order)
    some_known = bool(config.search_orders) and set(orders).issuperset(config.search_orders)
    require(config, "search_orders", some_known, f"name some of {orders}")


def _check_direction(config: GrowthConfig) -> None:
    """Check that the direction goes with the search and with the re-warm-up."""
    if config.direction == "freeze" and config.search != "none":
        raise ConfigError(f'search={config.search!r} chooses what to open: use direction="unfreeze" or search="none".')
    if config.freezes and config.rewarm_steps:
        raise ConfigError(
            f"rewarm_steps={config.rewarm_steps} has no effect on a schedule that freezes, which opens nothing: use 0 "
            'or direction="unfreeze".'
        )


def _check_ranges(config: GrowthConfig) -> None:
    """Check the fields that take a number."""
    for name in ("min_trainable", "stage_dropout", "ema_decay", "resolution_multiple"):
        value = getattr(config, name)
        no_average = name == "ema_decay" and value is None
        require(config, name, no_average or is_number(value), "use a number")
    # Field -> the smallest whole number that it may be.
    for name, least, hint in (
        ("num_stages", 1, "use a whole number of at least 1"),
        ("search_batches", 2, "scores need at least 2 calls"),
        ("rewarm_steps", 0, "use 0 or a number of steps"),
        ("resolution_multiple", 1, "use at least 1 pixel"),
    ):
        value = getattr(config, name)
        require(config, name, is_number(value, int) and value >= least, hint)
    # Stages are listed one by one: a number of another kind must not fill the memory.
    require(config, "num_stages", config.num_stages <= MOST_STAGES, f"use at most {MOST_STAGES}")
    require(config, "search_seed", is_number(config.search_seed, int), "use a whole number")
    is_choice = config.stage_embedding is None or isinstance(config.stage_embedding, bool)
    require(config, "stage_embedding", is_choice, "use True, False or None")
    require(config, "min_trainable", 0 < config.min_trainable <= 1, "use a fraction in (0, 1]")
    require(config, "stage_dropout", 0 <= config.stage_dropout < 1, "use a probability in [0, 1)")
    if config.stage_dropout and config.stage_embedding is False:
        raise ConfigError(f"stage_dropout={config.stage_dropout} needs a stage embedding, but stage_embedding=False.")
    require(config, "ema_decay", 0 <= (config.ema_decay or 0) < 1, "use None or a decay in [0, 1)")


def _check_resolutions(config: GrowthConfig) -> None:
    """Check that there is one resolution per stage, that they never fall, and that pixels are multiples."""
    resolutions, multiple = config.resolutions, config.resolution_multiple
    if resolutions is None:
        return
    if len(resolutions) != config.num_stages:
        raise ConfigError(
            f"resolutions={resolutions} has {len(resolutions)} values for num_stages="
            f"{config.num_stages}: give one per stage."
        )
    check_increasing_resolutions(resolutions, ConfigError)
    for size in resolutions:
        if isinstance(size, int) and size % multiple:
            raise ConfigError(
                f"resolution {size} is not a multiple of {multiple} (VAE factor times patch size): "
                f"use {max(multiple, size - size % multiple)}."
            )
