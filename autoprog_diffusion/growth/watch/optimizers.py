"""Hearing the steps of optimizers that growth was never told of: torch calls global hooks at each of them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


Parameters = set[nn.Parameter]


def parameters_in(optimizer: Any) -> Iterator[nn.Parameter]:
    """All parameters of an optimizer, group after group."""
    for group in optimizer.param_groups:
        yield from group["params"]


class Listener(Protocol):
    """Hears of the steps of optimizers, each with the watched parameters that it holds; there may be none."""

    def before_step(self, held: Parameters, optimizer: Any) -> None:
        """An optimizer is about to step."""
        ...

    def after_step(self, held: Parameters, optimizer: Any) -> None:
        """An optimizer has stepped; gradients are still there."""
        ...


class OptimizerWatch:
    """Hears the steps of all optimizers of the process, and knows which of the watched parameters they hold.

    An optimizer that is not torch's, or whose step is compiled, is never heard: nothing may be concluded from silence.

    Args:
        parameters: The watched ones.
        listener: Told of every step, until it is no more or `stop` is called.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], listener: Listener) -> None:
        self._watched = set(parameters)
        self._listener = weakref.ref(listener)
        # Of every optimizer heard: how many parameters it had when it was looked at, which one was the first, and the
        # watched ones among them. A `BackwardStep` leaves it those of one unit at a time.
        self._known: weakref.WeakKeyDictionary[Any, tuple[int, int, Parameters]] = weakref.WeakKeyDictionary()
        me: weakref.ref[Any] = weakref.ref(self)
        self._handles = [
            register_optimizer_step_pre_hook(_weak_hook(me, "before_step")),
            register_optimizer_step_post_hook(_weak_hook(me, "after_step")),
        ]
        for handle in self._handles:
            weakref.finalize(self, handle.remove)

    @property
    def heard(self) -> bool:
        """Whether any optimizer of the process has stepped, this model's or another's."""
        return len(self._known) > 0

    def stop(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def held(self) -> Parameters:
        """The watched parameters that are in some optimizer heard so far."""
        found: Parameters = set()
        for _, _, held in self._known.values():
            found |= held
        return found

    def held_anywhere(self) -> Parameters:
        """The watched parameters that are in some living optimizer, heard or not; slow (it asks all objects)."""
        found = self.held()
        # By class: `isinstance` would wake lazy objects up.
        optimizers = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.optim.Optimizer)]
        for optimizer in optimizers:
            # One that is not built to its end has no groups yet.
            if hasattr(optimizer, "param_groups"):
                found |= self._watched.intersection(parameters_in(optimizer))
        return found

    def note(self, optimizer: Any, event: str) -> None:
        """Tell the listener of a step."""
        listener = self._listener()
        if listener is not None:
            getattr(listener, event)(self._look_at(optimizer), optimizer)

    def _look_at(self, optimizer: Any) -> Parameters:
        """The watched parameters that an optimizer holds."""
        size = sum(len(group["params"]) for group in optimizer.param_groups)
        first = id(next(parameters_in(optimizer), None))
        known = self._known.get(optimizer)
        if known is not None and known[:2] == (size, first):
            return known[2]
        held = self._watched.intersection(parameters_in(optimizer))
        self._known[optimizer] = (size, first, held)
        return held


def _weak_hook(watch: weakref.ref[OptimizerWatch], event: str) -> Callable[..., None]:
    """A hook that keeps no watch alive: torch's list of hooks outlives every run."""

    def hook(optimizer: Any, *ignored: Any) -> None:
        # A compiled step is traced once: nothing of this may be in the graph.
        if torch.compiler.is_compiling():
            return
        living = watch()
        if living is not None:
            living.note(optimizer, event)

    return hook
