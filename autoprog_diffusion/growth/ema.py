"""Diffusers' `EMAModel` and frozen parameters: the parameters its `step` gets, and a check that it got them.

`EMAModel.step` copies the raw weights of a parameter that does not require gradient over its average. A block that has
just frozen would lose its average.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from .errors import OrderError
from .storage.model import FrozenStorage


class EMAParameters:
    """Gives the parameters to average, and finds averages that were stepped with others.

    Args:
        model: The bare model.
        growing: Names of the parameters that train in some stage.
        storage: What may hold frozen weights small.
    """

    def __init__(self, model: nn.Module, growing: set[str], storage: FrozenStorage) -> None:
        self._storage = storage
        self._dtypes = {parameter.dtype for parameter in model.parameters()}
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        trained = [shape for name, shape in shapes.items() if name in growing]
        # An average is built from all parameters, or from those that train.
        self._shapes = (list(shapes.values()), trained)
        self._asked = False
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def get(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """The same tensors in the same order, as parameters that all require gradient."""
        self._asked = True
        # Wrapped anew each time (4 us a tensor), since `model.to(...)` may give a parameter other memory.
        return [p if p.requires_grad else nn.Parameter(self._storage.exact(p)) for p in parameters]

    def note(self) -> None:
        """Remember how often every average of this model was stepped so far, in an earlier run or a checkpoint."""
        for average in self._averages():
            self._seen[average] = average.optimization_step

    def check(self) -> None:
        """Refuse to go on where an average was stepped since `note` without `get`.

        Raises:
            OrderError: It would lose the average of every block that freezes; or the average was built from weights
                that are held small.
        """
        for average in self._averages():
            if self._storage.active:
                self._check_built(average)
            if self._asked:
                continue
            if average.optimization_step > self._seen.get(average, 0):
                raise OrderError(
                    "an EMAModel of this model was stepped without growth.ema_parameters(), and would overwrite the "
                    "average of every block that freezes by its raw weights: write "
                    "ema_unet.step(growth.ema_parameters()) instead of ema_unet.step(unet.parameters()). If it "
                    "averages another model of the same shapes, call growth.ema_parameters() once."
                )

    def _check_built(self, average: Any) -> None:
        """Refuse, with `OrderError`, an average that began with what stands in the place of frozen weights."""
        begun = {tensor.dtype for tensor in average.shadow_params}
        begun_small = min(dtype.itemsize for dtype in begun) < min(dtype.itemsize for dtype in self._dtypes)
        unknown = any(bool(tensor.flatten()[:1].isnan().any()) for tensor in average.shadow_params)
        if begun_small or unknown:
            raise OrderError(
                "an EMAModel of this model was built after growth.prepare, from frozen weights that are held small "
                "(frozen_dtype): build it before GrowthScheduler, EMAModel(unet.parameters())."
            )

    def _averages(self) -> Iterator[Any]:
        """All living objects that look like an `EMAModel` of this model; by name, since Diffusers is not imported."""
        for candidate in [thing for thing in gc.get_objects() if type(thing).__name__ == "EMAModel"]:
            shapes = [tensor.shape for tensor in getattr(candidate, "shadow_params", ())]
            if shapes in self._shapes and hasattr(candidate, "optimization_step"):
                yield candidate
