"""Notices a program that ends without `growth.fold`: what it saved lacks the stage embedding."""

from __future__ import annotations

import atexit
import itertools
import warnings

from ..errors import GrowthWarning


MESSAGE = (
    "training reached the end of its plan, and growth.fold was never called: the stage embedding is not in the "
    "model's weights, so a model that was saved is not the one that trained. Call "
    "growth.fold(accelerator.unwrap_model(model)) after training, before the model is saved; to save in the middle, "
    "use `with growth.folded(model):`."
)

_numbers = itertools.count()
_open: set[int] = set()  # numbers of the runs that are over and were not folded; no model is kept alive by it


class FoldReminder:
    """One run whose stage embedding has to be folded: `due` at the end of its plan, `done` when it is folded."""

    def __init__(self) -> None:
        self._number = next(_numbers)

    def due(self) -> None:
        """The plan is over: from now on the program may not end like this."""
        _open.add(self._number)

    def done(self) -> None:
        """The model was folded, for good or to be saved."""
        _open.discard(self._number)


def remind() -> None:
    """Warn once, where runs were not folded; Python calls it as the program ends.

    Warns:
        GrowthWarning: The message says what to call.
    """
    if _open:
        _open.clear()
        warnings.warn(MESSAGE, GrowthWarning, stacklevel=1)


atexit.register(remind)
