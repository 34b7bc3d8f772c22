"""Which models are being grown: a second growth object would take what the first has frozen for the user's wish."""

from __future__ import annotations

from weakref import WeakSet

from torch import nn

from .errors import OrderError


_TAKEN: WeakSet[nn.Module] = WeakSet()


def check_free(model: nn.Module) -> None:
    """Refuse a model that another growth object has prepared and not folded, as when a notebook's cell runs again.

    Raises:
        OrderError: It is in other hands.
    """
    if model in _TAKEN:
        raise OrderError(
            f"this {type(model).__name__} is being grown by another GrowthScheduler, which has frozen a part of it "
            "and put hooks into it: fold that one first, growth.fold(model), or load the model again (in a notebook, "
            "run the cell that loads it)."
        )


def take(model: nn.Module) -> None:
    """Note that a model is being grown from now on."""
    _TAKEN.add(model)


def release(model: nn.Module) -> None:
    """Note that a model is a plain one again."""
    _TAKEN.discard(model)
