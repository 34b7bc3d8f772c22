"""Command-line arguments that all scripts share: growth, output, and checks of flags."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, TypeVar

import tyro
from torch import nn

from autoprog_diffusion.growth import GrowthConfig, GrowthPlan
from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.growth.presets import schedule_of

from .flag_checks import TRACKERS, check_tracker


Value = TypeVar("Value")
# Of a class of groups: no flag is prefixed with the name of its group. A subclass needs it again.
flat_flags = tyro.conf.configure(tyro.conf.OmitArgPrefixes)
# A field that the run sets itself: no flag.
Derived = Annotated[Value, tyro.conf.Fixed, tyro.conf.Suppress]
# One of them on the command line, and the schedule is that of the flags.
OF_THE_SCHEDULE = frozenset(
    "growth_plan num_stages order min_trainable direction boundaries resolutions accumulations sweeps window_share "
    "search".split()
)


@dataclass(frozen=True)
class GrowthArguments(GrowthConfig):
    """Progressive training."""

    growth: Literal["on", "off", "autoprog_zero"] = "on"
    """on takes the schedule that measured best for models of this kind, unless a flag of the schedule is given; off is
    plain full training in the same loop; autoprog_zero is the paper as published, where no flag differs."""
    growth_plan: str | None = None
    """Follow the plan in this file: one that was dumped, or the growth.json of an earlier run."""
    stage_embedding: bool = True
    """Train a stage embedding and fold it away at the end."""
    ema_decay: Derived[float | None] = None
    resolution_multiple: Derived[int] = 1
    search_candidates: Derived[tuple[tuple[int, ...], ...] | None] = None
    search_seed: Derived[int] = 0

    def __post_init__(self) -> None:
        """Leave the checks to `growth_config`: an error while tyro parses would come in a frame of several lines."""


def autoprog_zero(**overrides: Any) -> GrowthArguments:
    """The flags' defaults under `--growth autoprog_zero`; `overrides` are fields that a script cannot have."""
    preset = GrowthConfig.autoprog_zero(resolution_multiple=1, **overrides)
    return GrowthArguments(**vars(preset), growth="autoprog_zero")


def with_preset(growth: GrowthArguments, given: Sequence[str], model: nn.Module) -> GrowthArguments:
    """The flags with the schedule that measured best for a model, where the command line gives none.

    Args:
        growth: The flags.
        given: Flags of the command line.
        model: Bare denoiser.
    """
    if growth.growth != "on" or not OF_THE_SCHEDULE.isdisjoint(given):
        return growth
    return replace(growth, **schedule_of(model))


def growth_config(
    growth: GrowthArguments, *, multiple: int, ema_decay: float | None, seed: int
) -> tuple[GrowthConfig, GrowthPlan | None]:
    """Growth settings of the flags, and the plan of a file if they name one.

    `--growth off` is one stage that trains everything, without a stage embedding: plain full training.

    Args:
        growth: The flags.
        multiple: What every image side must be a multiple of.
        ema_decay: Decay of the model's average, or None without one.
        seed: The run's seed.

    Raises:
        ConfigError: A value is not allowed.
        PlanError: The plan file cannot be used.
    """
    if growth.growth == "off":
        memory = {"checkpointing": growth.checkpointing, "memory_gb": growth.memory_gb}
        return GrowthConfig(num_stages=1, min_trainable=1.0, stage_embedding=False, **memory), None
    settings = {item.name: getattr(growth, item.name) for item in fields(GrowthConfig)}
    settings |= {"resolution_multiple": multiple, "ema_decay": ema_decay, "search_seed": seed}
    bounds = growth.boundaries
    # tyro reads "100" as 100.0.
    if bounds and all(bound >= 1 and bound == int(bound) for bound in bounds):
        settings["boundaries"] = tuple(map(int, bounds))
    if not growth.growth_plan:
        return GrowthConfig(**settings), None
    plan = GrowthPlan.load(growth.growth_plan)
    settings |= {"num_stages": len(plan.stages), "search": "none"}
    settings |= {"resolutions": None, "accumulations": None, "boundaries": None}
    # How many stages the file has says nothing of sweeps.
    settings |= {"sweeps": 1, "window_share": None}
    return GrowthConfig(**settings), plan


@dataclass(frozen=True)
class OutputArguments:
    """Output, checkpoints and validation."""

    output_dir: str = "output"
    """Folder of the trained model, the report and the checkpoints."""
    overwrite_output_dir: bool = False
    """Delete the run that the folder holds."""
    checkpointing_steps: int = 500
    """Optimizer steps between checkpoints."""
    checkpoints_total_limit: int | None = None
    """Keep only so many checkpoints."""
    resume_from_checkpoint: str | None = None
    """A checkpoint folder, or latest for the newest complete one."""
    validation_steps: int | None = None
    """Optimizer steps between validations, or validation pictures, during training [at the end only]."""
    log_interval: int | None = None
    """Optimizer steps between lines of the tracker; losses are read as often, for which a GPU is waited [every step
    on the CPU, every tenth elsewhere]."""
    report_to: str = "none"
    """none, tensorboard, wandb, comet_ml or all."""
    tracker_project_name: str = "autoprog-diffusion"
    """Project name for the tracker."""
    logging_dir: str = "logs"
    """Tracker files, inside the output folder."""
    cpu_threads: str = "auto"
    """Threads that compute on the CPU: a number, or auto for all idle cores where one process runs without a GPU and
    OMP_NUM_THREADS is not set."""


def take_flag(argv: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Take `--name value` or `--name=value` from a command line; hyphens are underscores.

    Returns:
        The flag's last value, or None without the flag; and the other words.
    """
    found = None
    rest = []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag.replace("-", "_") != f"__{name}":
            rest.append(word)
        else:
            found = value if equals else next(words, "")
    return found, rest


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flag -> value over all groups of a script's settings, where a group is a dict."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        group = value if isinstance(value, dict) else {name: value}
        for flag, setting in group.items():
            # Groups share no flag; what `GrowthArguments` derives has the name of a flag, and comes after it.
            values.setdefault(flag, setting)
    return values


def check_output(output: OutputArguments) -> None:
    """Refuse output flags that would only fail in the middle of a run.

    Raises:
        ConfigError: The message names the flag, its value and what is allowed.
    """
    names = ("checkpointing_steps", "checkpoints_total_limit", "validation_steps", "log_interval")
    check_positive(vars(output), names)
    check_choice("report_to", output.report_to, TRACKERS)
    check_tracker(output.report_to)


def check_positive(values: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse values of the named flags that are not above 0; as `check_numbers`."""
    check_numbers(values, names, lambda value: value > 0, "a number above 0")


def check_numbers(
    values: Mapping[str, Any], names: Sequence[str], allowed: Callable[[float], bool], words: str
) -> None:
    """Refuse values of the named flags that are not `allowed`; None and absent flags pass.

    Args:
        values: Flag -> value.
        names: Flags to check.
        allowed: Whether a value is allowed.
        words: Which values are, for the message.

    Raises:
        ConfigError: The message names the flag, its value and what is allowed.
    """
    for name in names:
        value = values.get(name)
        if value is not None and not allowed(value):
            raise ConfigError(f"--{name} {value} is not allowed: use {words}.")


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a value that is not one of `allowed`.

    Raises:
        ConfigError: The message names the flag, its value and what is allowed.
    """
    if value not in allowed:
        raise ConfigError(f"--{name} {value} is not allowed: use one of {tuple(allowed)}.")
