"""The precision of a run, where one of its flags works in one precision only."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from .recipe_arguments import Arguments


AnyArguments = TypeVar("AnyArguments", bound=Arguments)


def with_precision(args: AnyArguments) -> AnyArguments:
    """The arguments with bfloat16 mixed precision, where bfloat16 weights ask for it and no flag says otherwise."""
    if args.train.mixed_precision is None and asks_for_bfloat16(args) is not None:
        return replace(args, train=replace(args.train, mixed_precision="bf16"))
    return args


def asks_for_bfloat16(args: Arguments) -> str | None:
    """The flag whose value works under bfloat16 autocast only, or None."""
    if args.growth.frozen_dtype == "bfloat16" and args.growth.growth != "off":
        return "--frozen_dtype bfloat16"
    if args.train.trained_dtype == "bfloat16":
        return "--trained_dtype bfloat16"
    return None
