"""Gradient checkpointing as Diffusers and transformers have it: a function in place of a block's call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from autoprog_diffusion.growth.errors import UnitError


# Attributes of every module that asks a function to run the blocks in it, or itself.
SWITCH = "gradient_checkpointing"
FUNCTION = "_gradient_checkpointing_func"


def run_blocks_by(model: nn.Module, run: Callable[..., Any]) -> Callable[[], None]:
    """Let a model of Diffusers or transformers call `run(block, *args)` in place of `block(*args)`.

    Args:
        model: The bare model.
        run: Gets the block, or a callable that is bound to it, and its arguments.

    Returns:
        What puts back whatever was switched on before.

    Raises:
        UnitError: The class has no gradient checkpointing.
    """
    asking: list[Any] = [module for module in model.modules() if hasattr(module, SWITCH)]
    declared = getattr(
        model, "_supports_gradient_checkpointing", getattr(model, "supports_gradient_checkpointing", False)
    )
    if not asking or not declared:
        raise UnitError(
            f"{type(model).__name__} has no gradient checkpointing in its library: use checkpointing=None."
        )
    before = []
    for module in asking:
        before.append({name: vars(module)[name] for name in (SWITCH, FUNCTION) if name in vars(module)})
        setattr(module, SWITCH, True)
        setattr(module, FUNCTION, run)

    def restore() -> None:
        for module, values in zip(asking, before):
            for name in (SWITCH, FUNCTION):
                vars(module).pop(name)
            vars(module).update(values)

    return restore
