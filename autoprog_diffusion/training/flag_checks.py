"""Flags mean what they say: those that contradict each other or the machine are refused or named before training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from autoprog_diffusion.growth.errors import ConfigError


# Values of --report_to, and the modules that they need.
TRACKER_MODULES = ("tensorboard", "wandb", "comet_ml", "mlflow", "clearml", "dvclive", "swanlab")
TRACKERS = ("none", "all", *TRACKER_MODULES)
# A flag, and what it has an effect with: another flag, and its value (None is any value).
NEEDS: tuple[tuple[str, str, Any], ...] = (
    ("ema_decay", "use_ema", True),
    ("foreach_ema", "use_ema", True),
    ("dataset_config_name", "dataset_name", None),
    ("dataloader_num_workers", "cache_latents", False),
    ("center_crop", "cache_latents", False),
    ("bucket_step", "buckets", True),
    ("max_aspect", "buckets", True),
    ("bucket_resolutions", "buckets", True),
    ("merge_buckets", "buckets", True),
    ("incomplete_batches", "buckets", True),
    ("keep_tags", "shuffle_tags", None),
    ("num_class_images", "with_prior_preservation", True),
    ("class_data_dir", "with_prior_preservation", True),
    ("prior_loss_weight", "with_prior_preservation", True),
    ("logit_mean", "weighting_scheme", "logit_normal"),
    ("logit_std", "weighting_scheme", "logit_normal"),
    ("mode_scale", "weighting_scheme", "mode"),
    ("warmup_epochs", "warmup_steps", None),
    ("held_out_share", "held_out", True),
    ("validation_data_dir", "held_out", True),
    ("evaluation_share", "held_out", True),
    ("evaluation_steps", "held_out", True),
    ("stop_patience", "held_out", True),
    ("export", "held_out", True),
)
# The flag that wins, the one that then has no effect.
EITHER = (
    ("max_train_steps", "num_train_epochs"),
    ("max_train_steps", "epochs"),
    ("warmup_steps", "warmup_epochs"),
    ("evaluation_steps", "evaluation_share"),
    ("validation_data_dir", "held_out_share"),
)
# Flags that name data or a model.
NAMES = (
    "train_data_dir",
    "dataset_name",
    "train_data",
    "val_data",
    "instance_data_dir",
    "class_data_dir",
    "pretrained_model_name_or_path",
    "validation_data_dir",
)
# Flags that name what is on this machine, and nothing on the Hub.
LOCAL_NAMES = ("train_data_dir", "instance_data_dir", "validation_data_dir")
# Flags of Adam that Adafactor does without.
OF_ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")
# Flags beside those of growth that count with --growth off as well.
FOR_ALL = {"growth", "seed", "ema_decay", "search", "checkpointing", "memory_gb"}
LARGEST_SEED = 2**32 - 1025  # numpy's limit, and room for the ranks, which add their number
Args = TypeVar("Args", bound=Any)


def given_flags(argv: Sequence[str]) -> tuple[str, ...]:
    """Names of the flags on a command line, as the fields are called.

    Example:
        >>> given_flags(["--seed", "3", "--no-use-ema", "--rank=4"])
        ('seed', 'use_ema', 'rank')
    """
    names = []
    for word in argv:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
            names.append(name.removeprefix("no_"))
    return tuple(names)


def explicit_wins(args: Args, argv: Sequence[str]) -> Args:
    """The arguments with a note of what the command line gave, where a default no longer beats a flag.

    A recipe's or preset's `max_train_steps` yields to epochs on the command line, `warmup_steps` to `warmup_epochs`.
    """
    given = given_flags(argv)
    train = args.train
    for winner, loser in EITHER:
        if loser in given and winner not in given and getattr(train, winner, None) is not None:
            train = replace(train, **{winner: None})
    return replace(args, train=train, given=given)


def idle_flags(given: Set[str], values: Mapping[str, Any], growth: Set[str]) -> list[str]:
    """A sentence on every flag of the command line that has no effect beside the others.

    Args:
        given: Flags of the command line.
        values: Flag -> value, of all flags.
        growth: Names of the flags of growth.
    """
    found = []
    for winner, loser in EITHER:
        if {winner, loser} <= given:
            found.append(f"--{loser} has no effect: --{winner} {values[winner]} says it.")
    for flag, other, wanted in NEEDS:
        if flag not in given or other not in values or {other, flag} in map(set, EITHER):
            continue
        missing = not values[other] if wanted is None else values[other] != wanted
        if missing:
            found.append(f"--{flag} has no effect: {_condition(other, wanted)}.")
    if "offload_ema" in given and not (values["use_ema"] or _averages(values)):
        found.append("--offload_ema has no effect: the weights are not averaged.")
    if "average_widths" in given and not _averages(values):
        found.append("--average_widths has no effect: it needs --average on.")
    if {"overwrite_output_dir", "resume_from_checkpoint"} <= given:
        found.append("--overwrite_output_dir has no effect: --resume_from_checkpoint goes on with the run.")
    if {"gradient_checkpointing", "checkpointing"} <= given:
        found.append(f"--gradient_checkpointing has no effect: --checkpointing {values['checkpointing']} says it.")
    if values.get("growth") == "off":
        for name in sorted(growth & given - FOR_ALL):
            found.append(f"--{name} has no effect: --growth off trains everything in one stage.")
    if values.get("optimizer") == "adafactor":
        for name in sorted(given & set(OF_ADAM)):
            found.append(f"--{name} has no effect: --optimizer adafactor has no such setting.")
    if "lr_warmup_steps" in given and values["lr_warmup_steps"] and values["lr_scheduler"] == "constant":
        found.append("--lr_warmup_steps has no effect: --lr_scheduler constant has none, constant_with_warmup does.")
    return found


def replaces_decay(lr_scheduler: str, *, use_ema: bool) -> bool:
    """Whether `--average auto` averages: in place of a decay of the learning rate, and of no other average.

    Args:
        lr_scheduler: Name of the schedule.
        use_ema: Whether the flags ask for Diffusers' average.
    """
    return lr_scheduler == "constant_with_warmup" and not use_ema


def _averages(values: Mapping[str, Any]) -> bool:
    """Whether the flags ask for power-function averages."""
    auto = replaces_decay(values["lr_scheduler"], use_ema=values["use_ema"])
    return values["average"] == "on" or (values["average"] == "auto" and auto)


def _condition(flag: str, wanted: Any) -> str:
    if wanted is True:
        return f"it needs --{flag}"
    if wanted is False:
        return f"it needs --no-{flag}"
    return f"it needs --{flag}" + ("" if wanted is None else f" {wanted}")


def check_tracker(name: str) -> None:
    """Refuse a tracker that is not installed: Accelerate would leave it out without a word.

    Raises:
        ConfigError: The message has the line that installs it.
    """
    if name == "none":
        return
    modules = TRACKER_MODULES if name == "all" else (name,)
    if not any(map(find_spec, modules)):
        package = modules[0].replace("_", "-")
        raise ConfigError(f"--report_to {name} needs a package that is not installed: pip install {package}.")


def check_not_blank(values: Mapping[str, Any]) -> None:
    """Refuse an empty name of data or of a model, such as that of a shell variable that is not set.

    Args:
        values: Flag -> value.

    Raises:
        ConfigError: The defaults would be trained on.
    """
    for name in NAMES:
        value = values.get(name)
        if isinstance(value, str) and not value.strip():
            raise ConfigError(f"--{name} is empty: give a folder or name, or remove the flag for the default.")


def check_local(values: Mapping[str, Any]) -> None:
    """Refuse data that is not there, before a model is loaded for it.

    Args:
        values: Flag -> value.

    Raises:
        ConfigError: A flag names a folder or file that does not exist.
    """
    for name in LOCAL_NAMES:
        value = values.get(name)
        if not isinstance(value, str):
            continue
        path = Path(value).expanduser()
        if not path.exists():
            where = "" if path.is_absolute() else f" (looked for in {Path.cwd()})"
            raise ConfigError(f"--{name} {value} does not exist{where}: give a folder of images, or a file of them.")


def check_seed_and_finite(values: Mapping[str, Any]) -> None:
    """Refuse numbers that no generator or optimizer takes.

    Args:
        values: Flag -> value.

    Raises:
        ConfigError: The message names the flag, its value and what is allowed.
    """
    for name, value in values.items():
        if not all(math.isfinite(number) for number in _floats(value)):
            raise ConfigError(f"--{name} {value} is not allowed: use finite numbers.")
    if not 0 <= values["seed"] <= LARGEST_SEED:
        raise ConfigError(f"--seed {values['seed']} is not allowed: use a number from 0 to {LARGEST_SEED}.")


def _floats(value: Any) -> Iterable[float]:
    if isinstance(value, float):
        return [value]
    return [item for item in value if isinstance(item, float)] if isinstance(value, (tuple, list)) else []


def check_warmup(flag: str, steps: int, run: int, given: Sequence[str]) -> str | None:
    """Refuse a warm-up of the command line that is longer than the run.

    Args:
        flag: Which one it was given by.
        steps: Its optimizer steps.
        run: Optimizer steps of the run.
        given: Flags of the command line.

    Returns:
        A sentence, where the warm-up is a default.

    Raises:
        ConfigError: The learning rate would never reach its peak.
    """
    if steps <= run:
        return None
    fact = (
        f"the warm-up of {steps} steps is longer than the run of {run} steps: the learning rate never gets to its peak"
    )
    if flag in given:
        raise ConfigError(f"--{flag}: {fact}. Use {run // 10} or so, or train longer.")
    return f"{fact} (--{flag} is a default; give your own)."


def short_epoch(batches: int, accumulation: int) -> str | None:
    """A sentence where an epoch has fewer batches than an optimizer step asks for: no step spans two epochs."""
    if batches >= accumulation:
        return None
    return (
        f"an epoch has {batches} batches, fewer than an optimizer step asks for ({accumulation}): it takes {batches}."
    )


def check_accumulations(accumulations: Sequence[int] | None, max_train_steps: int | None) -> None:
    """Refuse stages of different batches in a run whose length is told in epochs.

    Args:
        accumulations: Forward passes of an optimizer step by stage, if they are given.
        max_train_steps: Optimizer steps of the run, if they are given.

    Raises:
        ConfigError: The message names the flag that is missing.
    """
    if accumulations is not None and max_train_steps is None:
        raise ConfigError(
            f"--accumulations {' '.join(map(str, accumulations))} makes the steps of an epoch depend on the stages, "
            "which depend on the steps of the run: say its length by --max_train_steps."
        )
