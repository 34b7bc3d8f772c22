"""Damage: of bytes, as disks and broken downloads do it, and of values in JSON, as hands do it."""

from __future__ import annotations

import copy
import random
from typing import Any


# What may stand where another value belongs.
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, -(2**40), 0.5, -0.5, 1e308, float("nan"), float("inf"), "", "x",
    "nan", "1", [], [[]], [1, "a"], [0.25, 0.5], {}, {"a": 1},
)  # fmt: skip


class FoundError(Exception):
    """Something that must not happen did."""


def require(condition: object, message: str) -> None:
    """Report a finding unless the condition holds."""
    if not condition:
        raise FoundError(message)


def damaged(chance: random.Random, content: bytes) -> bytes:
    """The content with a random damage; seldom as it was."""
    size = len(content)
    start = chance.randrange(size + 1)
    stop = min(size, start + chance.choice([1, 2, 8, 64, 512]))
    kind = chance.choice(["cut", "cut", "bits", "bits", "bits", "zeros", "noise", "lost", "twice", "more"])
    if kind == "cut":
        return content[:start]
    if kind == "zeros":
        return content[:start] + bytes(stop - start) + content[stop:]
    if kind == "noise":
        return content[:start] + chance.randbytes(stop - start) + content[stop:]
    if kind == "lost":
        return content[:start] + content[stop:]
    if kind == "twice":
        return content[:stop] + content[start:]
    if kind == "more":
        return content + chance.randbytes(chance.choice([1, 100]))
    return flipped(chance, content, chance.choice([1, 1, 2, 10, 50]))


def flipped(chance: random.Random, content: bytes, count: int = 1) -> bytes:
    """The content with random bits flipped."""
    changed = bytearray(content)
    for _ in range(count if changed else 0):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def changed_value(chance: random.Random, value: Any) -> Any:
    """A copy of a JSON value with one of its parts replaced, deleted or repeated."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return chance.choice(ODD)
    holder, key = chance.choice(places)
    kind = chance.random()
    if kind < 0.7:
        holder[key] = chance.choice(ODD)
    elif kind < 0.85:
        del holder[key]
    elif isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[f"{key}s"] = holder[key]
    return value


def _places(value: Any) -> Any:
    """(container, key) of every part of a JSON value."""
    if isinstance(value, dict):
        keys: Any = list(value)
    elif isinstance(value, list):
        keys = range(len(value))
    else:
        return
    for key in keys:
        yield value, key
        yield from _places(value[key])
