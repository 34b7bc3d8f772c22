"""Checks of a `GrowthConfig`, field by field and of fields that must go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from .choices import Checkpointing, Cost, Direction, EmbeddingInit, FrozenDtype, Objective, Order, Search, WindowState
from .errors import ConfigError
from .values import check_choices, check_increasing_resolutions, is_number, require


if TYPE_CHECKING:
    from .config import GrowthConfig


MOST_STAGES = 1000
MIN_TRAINABLE = 0.25  # the default


def check_words(config: GrowthConfig) -> None:
    """Check the fields that take one of a few words."""
    choices = {"order": Order, "search": Search, "stage_embedding_init": EmbeddingInit}
    choices |= {"search_objective": Objective, "search_cost": Cost, "window_state": WindowState}
    # These may be None as well.
    for name, kind in (("direction", Direction), ("checkpointing", Checkpointing), ("frozen_dtype", FrozenDtype)):
        if getattr(config, name) is not None:
            choices[name] = kind
    check_choices(config, choices)
    orders = get_args(Order)
    some_known = bool(config.search_orders) and set(orders).issuperset(config.search_orders)
    require(config, "search_orders", some_known, f"name some of {orders}")


def check_direction(config: GrowthConfig) -> None:
    """Check that the direction goes with the search and with the re-warm-up."""
    if config.direction in ("freeze", "window") and config.search != "none":
        raise ConfigError(f'search={config.search!r} chooses what to open: use direction="unfreeze" or search="none".')
    if config.embedders_always and config.search != "none":
        raise ConfigError(
            f"embedders_always={config.embedders_always} does not go with search={config.search!r}, whose costs count "
            'on a front without gradient: use False or search="none".'
        )
    if config.freezes and config.rewarm_steps:
        raise ConfigError(
            f"rewarm_steps={config.rewarm_steps} has no effect on a schedule that freezes, which opens nothing: use 0 "
            'or direction="unfreeze" or "window".'
        )


def check_windows(config: GrowthConfig) -> None:
    """Check what only windows have, and that they cover the model."""
    share, sweeps, stages = config.window_share, config.sweeps, config.num_stages
    if config.direction != "window":
        require(config, "sweeps", sweeps == 1, 'only windows have sweeps: use 1 or direction="window"')
        require(config, "window_share", share is None, 'it is for windows: use None or direction="window"')
        return
    if stages % sweeps:
        near = sweeps * max(1, round(stages / sweeps))
        raise ConfigError(
            f"num_stages={stages} is not a multiple of sweeps={sweeps}: all sweeps have as many windows, use "
            f"num_stages={near}."
        )
    if config.min_trainable != MIN_TRAINABLE:
        raise ConfigError(
            f"min_trainable={config.min_trainable} has no effect on windows, which train a fraction sweeps / "
            f"num_stages of the blocks: leave it at {MIN_TRAINABLE}, and set window_share for larger ones."
        )
    if share is not None and share * stages < sweeps * (1 - 1e-9):
        raise ConfigError(
            f"window_share={share} is less than each of {stages // sweeps} windows must hold: use None or at least "
            f"{sweeps / stages:.4g}."
        )


def check_ranges(config: GrowthConfig) -> None:
    """Check the fields that take a number."""
    for name in ("min_trainable", "stage_dropout", "ema_decay", "resolution_multiple"):
        value = getattr(config, name)
        no_average = name == "ema_decay" and value is None
        require(config, name, no_average or is_number(value), "use a number")
    # Field -> the smallest whole number that it may be.
    for name, least, hint in (
        ("num_stages", 1, "use a whole number of at least 1"),
        ("sweeps", 1, "use a whole number of at least 1"),
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
    require(config, "embedders_always", isinstance(config.embedders_always, bool), "use True or False")
    some_share = config.window_share is None or is_number(config.window_share) and 0 < config.window_share <= 1
    require(config, "window_share", some_share, "use None or a fraction in (0, 1]")
    require(config, "min_trainable", 0 < config.min_trainable <= 1, "use a fraction in (0, 1]")
    require(config, "stage_dropout", 0 <= config.stage_dropout < 1, "use a probability in [0, 1)")
    if config.stage_dropout and config.stage_embedding is False:
        raise ConfigError(f"stage_dropout={config.stage_dropout} needs a stage embedding, but stage_embedding=False.")
    require(config, "ema_decay", 0 <= (config.ema_decay or 0) < 1, "use None or a decay in [0, 1)")


def check_memory(config: GrowthConfig) -> None:
    """Check that there is a budget where checkpointing follows one, and nowhere else."""
    budget = config.memory_gb
    if budget is not None:
        require(config, "memory_gb", is_number(budget) and budget > 0, "use a number of 10^9 bytes above 0")
        if config.checkpointing != "auto":
            raise ConfigError(
                f'memory_gb={budget} has no effect with checkpointing={config.checkpointing!r}: use "auto", or None.'
            )
    elif config.checkpointing == "auto":
        raise ConfigError('checkpointing="auto" needs memory_gb: the 10^9 bytes that training may take, such as 24.')


def check_resolutions(config: GrowthConfig) -> None:
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


def check_accumulations(config: GrowthConfig) -> None:
    """Check that there is one whole number of at least 1 per stage, of a schedule that is known beforehand."""
    given = config.accumulations
    if given is None:
        return
    if len(given) != config.num_stages:
        raise ConfigError(
            f"accumulations={given} has {len(given)} values for num_stages={config.num_stages}: give one per stage."
        )
    for passes in given:
        if not is_number(passes, int) or passes < 1:
            raise ConfigError(f"accumulations={given} is not allowed: give whole numbers of at least 1.")
    if config.search != "none":
        raise ConfigError(
            f"accumulations={given} with search={config.search!r} is not allowed: a search decides what trains from "
            'the batches of one size. Use search="none", or leave accumulations out.'
        )
