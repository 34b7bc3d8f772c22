"""Counting optimizer steps beside calls of `growth.step`: one call per micro-batch is found by its gradients."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from ..errors import OrderError


# Equal numbers of calls without an optimizer step, so many times in a row, are no accident.
PERIODS = 4
INSIDE = (
    "call growth.step() once per optimizer step, inside `if accelerator.sync_gradients:` or beside optimizer.step()."
)


class StepCount:
    """Compares calls of `growth.step` with the optimizer steps between them.

    A call without an optimizer step is no fault: a gradient scaler skips steps, and so may a loop. A fault it is where
    the gradient outlives the call and the next backward pass adds to it, or where it happens in a fixed rhythm.
    Where gradients live in buffers of their own (`trust_gradients=False`) only the rhythm counts.

    Args:
        trust_gradients: Whether a gradient that was set to None comes back as another tensor.
    """

    def __init__(self, trust_gradients: bool) -> None:
        self._trust = trust_gradients
        self.optimizer_steps = 0
        self.iterations = 0  # the same, where several optimizers step together
        self._first: set[nn.Parameter] = set()  # what the first optimizer heard holds
        self._since = 0  # optimizer steps since the last call
        self._others = 0  # steps since then of optimizers that hold nothing of this model
        self._idle = 0  # calls since the last one that had an optimizer step
        self._periods: list[tuple[int, bool]] = []  # the latest values of `_idle`, and whether the gradient survived
        self._kept: tuple[nn.Parameter, Tensor, int] | None = None
        self._survived = False

    @property
    def stepped(self) -> bool:
        """Whether an optimizer of this model has stepped since the last call."""
        return self._since > 0

    def after_step(self, held: set[nn.Parameter]) -> None:
        """Count a step of an optimizer that holds `held` of this model, maybe nothing; gradients are still there."""
        if not held:
            self._others += 1
            return
        self._first = self._first or held
        self.iterations += not self._first.isdisjoint(held)
        self.optimizer_steps += 1
        self._since += 1
        self._survived = self._survived or self._is_kept()

    def check(self, parameters: Iterable[nn.Parameter]) -> None:
        """Count a call of `growth.step`.

        Args:
            parameters: Those that train.

        Raises:
            OrderError: It is called more often than the optimizer steps.
        """
        if self._since > 0:
            self._check_rhythm()
        elif self._others == 0 and self.optimizer_steps > 0:
            self._check_idle(parameters)
        self._since = 0
        self._others = 0

    def _check_rhythm(self) -> None:
        """Count a call after an optimizer step: how many had none since the last such call?"""
        if self.optimizer_steps > self._since:
            self._periods = [*self._periods[1 - PERIODS :], (self._idle, self._survived)]
        self._idle = 0
        self._kept = None
        self._survived = False
        times = 0
        for period in reversed(self._periods):
            if period != self._periods[-1]:
                break
            times += 1
        for idle, survived in self._periods[-1:]:
            enough = 2 if survived else PERIODS
            if idle > 0 and times >= enough:
                self._refuse()

    def _check_idle(self, parameters: Iterable[nn.Parameter]) -> None:
        """Count a call without an optimizer step before it."""
        self._idle += 1
        # One backward pass has added to the gradient, and nothing has set it to zero.
        if self._is_kept() and self._kept is not None and self._kept[1]._version == self._kept[2] + 1:
            self._refuse()
        self._kept = None
        if not self._trust:
            return
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is not None:
                self._kept = (parameter, gradient, gradient._version)
                return

    def _is_kept(self) -> bool:
        """Whether the gradient that was there at the last call is there still."""
        if self._kept is None:
            return False
        parameter, gradient, _ = self._kept
        return parameter.grad is gradient

    def _refuse(self) -> None:
        raise OrderError(
            "growth.step was called more than once per optimizer step, as for every micro-batch of an accumulated "
            f"gradient: stages would end too early; {INSIDE}"
        )
