"""Plain values of configurations and plans, JSON objects and resolutions, and their checks."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, get_args

from .errors import ConfigError


Resolution = float | int  # a fraction (float, at most 1.0) of the data's size, or pixels (int)
JSON = dict[str, Any]  # an object of plain JSON types


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
        raise error(f"resolutions {values} decrease: give them in non-decreasing order.")


def is_number(value: object, kinds: Any = (int, float)) -> bool:
    """Whether a value is one of `kinds`; a bool is an int to Python, but no number to a reader."""
    return isinstance(value, kinds) and not isinstance(value, bool)


def require(config: Any, name: str, allowed: bool, hint: str) -> None:
    """Raise `ConfigError` about the value of a field unless it is `allowed`; `hint` says what is."""
    if not allowed:
        raise ConfigError(f"{name}={getattr(config, name)!r} is not allowed: {hint}.")
