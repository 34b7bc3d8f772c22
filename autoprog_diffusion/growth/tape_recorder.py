"""`Recorder` lets a tape hear what a model does, on any device, with real tensors."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .flops import flop_counter
from .tape import Call, Tape
from .units import Layout


# Operation -> its FLOPs.
FORMULAS = flop_counter().flop_registry
PLAIN = (Tensor, nn.Parameter)


class Recorder(TorchDispatchMode):
    """Lets a tape hear the operations of a model inside a `with` block.

    Args:
        tape: Is told.
        model: The bare model.
        layout: Its units.
        beside: Parameters outside of the model that always train.
    """

    def __init__(self, tape: Tape, model: nn.Module, layout: Layout, beside: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._tape = tape
        self._model = model
        self._layout = layout
        self._numbers = itertools.count(1)
        self._known: dict[int, int] = {}
        self._references: dict[int, weakref.ref[Any]] = {}
        self._hooks = ExitStack()
        names = layout.names
        tape.parameters = {name: self.storage(each) for name, each in model.named_parameters() if name in names}
        tape.always = set(map(self.storage, beside))

    def __enter__(self) -> Recorder:
        self._hooks.enter_context(self._tape.following(self._model, self._layout))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._hooks.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A tensor that is made of others (quantised weights) runs its own code first: then its parts come here.
        if any(cls not in PLAIN for cls in types):
            return NotImplemented
        keywords = kwargs or {}
        result = func(*args, **keywords)
        if isinstance(func, torch._ops.OpOverload) and not func.is_view:
            packet = func._overloadpacket
            formula = FORMULAS.get(packet)
            flops = 0 if formula is None else formula(*args, **keywords, out_val=result)
            self._tape.note(
                Call(
                    name=packet.__name__,
                    args=args,
                    kwargs=keywords,
                    result=result,
                    flops=flops,
                    key=self.storage,
                )
            )
        return result

    def storage(self, tensor: Tensor) -> int:
        """A number for the storage of a tensor that no other one has had."""
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place not in self._known:
            self._known[place] = next(self._numbers)
            self._references[place] = weakref.ref(storage, lambda _: self._forget(place))
        return self._known[place]

    def _forget(self, place: int) -> None:
        """A storage has died; another one may come to its place."""
        del self._known[place]
        del self._references[place]
