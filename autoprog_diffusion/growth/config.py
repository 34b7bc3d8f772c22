"""`GrowthConfig`: the only thing a user fills in. Pure data, no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .choices import Checkpointing, Cost, Direction, EmbeddingInit, FrozenDtype, Objective, Order, Search, WindowState
from .config_checks import (
    check_accumulations,
    check_direction,
    check_memory,
    check_ranges,
    check_resolutions,
    check_windows,
    check_words,
)
from .errors import ConfigError
from .presets import schedule_of
from .values import JSON, Resolution, as_resolution, check_boundaries, check_fields, is_number, require


if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class GrowthConfig:
    """How many blocks of a model train, and when, while it is fine-tuned.

    The defaults are what measured best: freezing from the input on, in four stages. `GrowthConfig.autoprog_zero()` is
    the method of AutoProg-Zero (arXiv 2410.00350).

    Attributes:
        num_stages: Number of training stages; those that a short run or a small model has no room for are merged.
        order: Blocks of a stage that trains some of them. `suffix` takes those nearest the output (the frozen front
            then runs without gradient), `prefix` those nearest the input, `interleaved` every L-th block (the paper).
            Windows end there: with `suffix` they go from the input to the output, which measured better.
        min_trainable: Fraction of the blocks trained in the smallest stage, in (0, 1]; it changes linearly to 1. Not
            for windows, which all have one size.
        direction: `freeze` starts with the whole model and ends with the smallest stage, so that frozen blocks are
            trained ones (after FreezeOut, arXiv 1706.04983); pass `growth.ema_parameters()` to Diffusers' `EMAModel`.
            `unfreeze` starts with the smallest stage and ends with the whole model (the paper). `window` trains a
            part of the blocks in every stage, another one each time, to save memory. `None` freezes with a fixed
            schedule, and unfreezes with a search.
        stage_embedding: Whether to train a Stage Identifier embedding beside the model (folded away by `fold`). `None`
            trains one unless the model has no place for it, or its timestep embedder is frozen: a LoRA checkpoint
            would not hold the fold.
        stage_embedding_init: `zero` leaves the pretrained function unchanged, `normal` is the paper's N(0, 0.02^2),
            `carry` starts every row but the first from the trained row before it.
        stage_dropout: Probability, per sample, of replacing the stage's embedding by a null row (the paper: 0.1).
        ema_decay: Decay of the stage embedding's own moving average; set it to the EMA decay of your model so that
            `fold` writes the averaged row. `None` folds the raw row.
        resolutions: Per stage, either fractions in (0, 1] of the data's size or sizes in pixels; never decreasing.
        accumulations: Per stage, the forward passes of an optimizer step, which make its batch; None leaves their
            number to the loop. The fixed schedule only.
        resolution_multiple: What every image side must be a multiple of: VAE factor times the denoiser's patch size
            or down-sampling.
        boundaries: First optimizer step of stages 1, 2, ... (num_stages - 1 values), or fractions of the training in
            (0, 1). `None` spaces them evenly.
        rewarm_steps: Optimizer steps over which the learning rate of newly opened blocks rises from 1/n of the
            schedule's to all of it; 0 for none. The optimizer is then built from `growth.parameter_groups()`.
        frozen_dtype: Format that linear and convolution weights are held in while they are frozen; one that opens is
            restored exactly. `bfloat16` changes nothing under bfloat16 autocast, bit for bit. `float8`, `int8` and
            `nf4` (4 bits), by torchao, change what frozen blocks compute. `None` holds nothing small.
        embedders_always: Whether the modules before the blocks (patch, time and label embedders) train in every stage,
            rather than together with the first block. No front of frozen blocks runs without gradient then.
        sweeps: How often windows pass over the whole model; each sweep has num_stages / sweeps windows.
        window_share: Largest fraction of the blocks' parameters in a window, in (0, 1]. `None` cuts the model into
            num_stages / sweeps windows that share no block; a larger fraction makes them overlap.
        window_state: What becomes of the optimizer's state of a block that closes and opens again: `release` drops it,
            so that its moments begin anew (set `rewarm_steps`); `park` keeps it in CPU memory meanwhile.
        search: `none` follows the fixed schedule; `zero_shot` chooses every stage but the last by training-free
            scores, after a warm-up of `search_batches` steps (one more stage; only the output head trains in it).
        search_objective: `rank_vote` is the paper's; `gain_per_cost` the expected loss decrease per cost; `random` and
            `fixed` are baselines.
        search_cost: `flops` counts, the same in every run; `measured` times every unit on your machine and batch.
        search_orders: Orders whose levels are candidates.
        search_candidates: Sets of block indices to choose from instead.
        search_batches: Training calls a search replays, at least 2.
        search_seed: Of the `random` objective.
        checkpointing: What is computed again in the backward pass, so that its activations take no memory: `none`,
            `all` behind the frozen front, or `auto`, as many blocks as `memory_gb` asks for. `None` leaves what you
            have switched on as it is.
        memory_gb: What weights, gradients, optimizer state and activations of the model may take under `auto`,
            in 10^9 bytes.

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
    accumulations: tuple[int, ...] | None = None
    resolution_multiple: int = 8
    boundaries: tuple[float | int, ...] | None = None
    rewarm_steps: int = 0
    frozen_dtype: FrozenDtype | None = None
    embedders_always: bool = False
    sweeps: int = 1
    window_share: float | None = None
    window_state: WindowState = "release"
    search: Search = "none"
    search_objective: Objective = "gain_per_cost"
    search_cost: Cost = "flops"
    search_orders: tuple[Order, ...] = ("interleaved", "suffix", "prefix")
    search_candidates: tuple[tuple[int, ...], ...] | None = None
    search_batches: int = 2
    search_seed: int = 0
    checkpointing: Checkpointing | None = None
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        # JSON gives lists; the dataclass stays hashable.
        converters = {"resolutions": as_resolution, "search_candidates": _as_candidate}
        for name in ("resolutions", "accumulations", "boundaries", "search_orders", "search_candidates"):
            values: Any = getattr(self, name)
            if values is not None:
                is_list = isinstance(values, Iterable) and not isinstance(values, str)
                require(self, name, is_list, "give a list of values")
                convert: Any = converters.get(name)
                object.__setattr__(self, name, tuple(map(convert, values) if convert else values))
        check_words(self)
        check_ranges(self)
        check_direction(self)
        check_memory(self)
        check_windows(self)
        check_resolutions(self)
        check_accumulations(self)
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

    @classmethod
    def for_model(cls, model: nn.Module, **overrides: Any) -> GrowthConfig:
        """The schedule that measured best for models of this kind, with `overrides` in place of some settings.

        It freezes the model in eight stages, late in the run, and adapters never (`growth.presets`): the recipes'
        default.

        Args:
            model: Bare denoiser.
            overrides: Fields.

        Raises:
            ConfigError: An override is not allowed, or is not a field.

        Example:
            >>> growth = GrowthScheduler(unet, GrowthConfig.for_model(unet), accelerator)  # doctest: +SKIP
        """
        return cls.from_dict(schedule_of(model) | overrides)

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
