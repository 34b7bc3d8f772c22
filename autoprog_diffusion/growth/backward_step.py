"""`BackwardStep`: an optimizer that steps inside the backward pass, unit by unit, and frees gradients as it goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .backends.fsdp2 import is_sharded
from .backends.ranks import world_size
from .bare import bare
from .errors import OrderError
from .memory import tensor_bytes


FIRST_STEPS = 2  # of a stage, in which numbers are compared


@dataclass(eq=False)
class _Unit:
    """Parameters that step together.

    Attributes:
        name: For messages.
        parameters: Those that train now.
        parts: Place of a group in the optimizer -> those of the parameters that it holds.
        arrived: Those whose gradient is there, since the last optimizer step.
        stepped: Whether they have moved, since then.
    """

    name: str
    parameters: list[nn.Parameter]
    parts: dict[int, list[nn.Parameter]]
    arrived: set[nn.Parameter] = field(default_factory=set)
    stepped: bool = False


@dataclass(eq=False)
class _Left:
    """A small gradient of a unit that has moved, which nobody may touch before `optimizer.step`.

    Attributes:
        parameter: Whose it is.
        gradient: As the unit left it.
        version: Of the gradient, which operations in place count up.
        copy: Of the gradient, where its numbers are compared: a gradient scaler does not count its operations.
    """

    parameter: nn.Parameter
    gradient: Tensor
    version: int
    copy: Tensor | None

    def touched(self) -> bool:
        """Whether it was changed, or replaced by another."""
        now = self.parameter.grad
        if now is None:
            return False
        if now is not self.gradient or now._version != self.version:
            return True
        return self.copy is not None and not torch.allclose(now, self.copy, rtol=0, atol=0, equal_nan=True)


class BackwardStep:
    """Steps an optimizer inside `loss.backward()`: a unit moves as soon as all its gradients are there.

    Its gradients are then freed, so that those of one unit are alive at a time instead of all. (One small tensor stays
    until `optimizer.step()`, which notices a loop that clips what has moved already.) The loop stays as it is:
    `optimizer.step()` moves what is left, units some of whose parameters got no gradient and parameters that are
    in no unit. Without clipping the weights are those of the ordinary step, bit for bit. Every `GrowthScheduler` has
    one, lets it follow the stages, and begins with it in `step_in_backward`.
    """

    def __init__(self) -> None:
        self._optimizer: torch.optim.Optimizer | None = None
        self._max_norm: float | None = None
        self._units: list[_Unit] = []
        self._others: list[nn.Parameter] = []
        self._norms: list[Tensor] = []
        self._left: _Left | None = None
        self._looks = 0  # optimizer steps of this stage in which the numbers of what is left were compared
        self._held = 0  # bytes of the gradients that have arrived and are there
        self._most = 0  # the most of them at any time of this stage
        self._begun = False  # whether a gradient has arrived since the last optimizer step
        self._clipped = False  # whether what is left was clipped, since then
        self._paused = False
        self._stepping = False
        self._handles = ExitStack()  # of the hooks on parameters
        self._hooks = ExitStack()  # of the one on the optimizer

    def begin(self, optimizer: Any, max_norm: float | None) -> None:
        """Hook an optimizer.

        Args:
            optimizer: Bare, or wrapped by Accelerate. Its step for one parameter must not depend on another.
            max_norm: Gradients are clipped to this norm unit by unit. The norm of all together, which an ordinary loop
                clips to, is known only when the first unit has moved.
        """
        self.stop()
        inner: torch.optim.Optimizer = bare(optimizer)
        self._hooks.enter_context(inner.register_step_pre_hook(self._before_step))
        self._optimizer = inner
        self._max_norm = max_norm

    @property
    def active(self) -> bool:
        """Whether an optimizer steps inside the backward pass."""
        return self._optimizer is not None

    @property
    def norm(self) -> Tensor | None:
        """Norm of the whole gradient of the last step before it was clipped, a scalar; None without clipping."""
        if not self._norms:
            return None
        return torch.stack([norm.float() for norm in self._norms]).norm()

    def enter(self, groups: Iterable[dict[str, Any]]) -> None:
        """Follow a stage: wait for the gradients of what trains now.

        Args:
            groups: `name` and `params` of every unit.
        """
        self._handles.close()
        self._units.clear()
        self._most = 0
        self._looks = 0
        if self._optimizer is None:
            return
        places = {}
        for place, group in enumerate(self._optimizer.param_groups):
            places.update(dict.fromkeys(group["params"], place))
        waited = set()
        for group in groups:
            trains = [each for each in group["params"] if each.requires_grad and each in places]
            unit = _Unit(group["name"], trains, {})
            for parameter in trains:
                unit.parts.setdefault(places[parameter], []).append(parameter)
                hook = partial(self._arrive, unit)
                self._handles.enter_context(parameter.register_post_accumulate_grad_hook(hook))
            waited.update(trains)
            self._units.append(unit)
        self._others = [parameter for parameter in places if parameter not in waited]

    def clip(self) -> Tensor | None:
        """Clip what `optimizer.step` will move, unit by unit, and return `norm`; `optimizer.step` does it first."""
        if not self._clipped:
            self._begin()
            for unit in self._units:
                if unit.arrived and not unit.stepped:
                    self._clip(unit.parameters)
            self._clip(self._others)
            self._clipped = True
        return self.norm

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let backward passes inside a `with` block train nothing: their gradients stay, as without this object."""
        before = self._paused
        self._paused = True
        try:
            yield
        finally:
            self._paused = before

    def stop(self) -> None:
        """Take the hooks off: the optimizer is an ordinary one again."""
        self._handles.close()
        self._hooks.close()
        self._units.clear()
        self._optimizer = None
        if self._left is not None:
            self._left.parameter.grad = None
            self._left = None

    @property
    def spared_bytes(self) -> int:
        """Bytes of gradients in this stage that were never there together with the others, as its steps have shown."""
        if self._most == 0:
            return 0
        return sum(tensor_bytes(parameter) for unit in self._units for parameter in unit.parameters) - self._most

    def _arrive(self, unit: _Unit, parameter: Any) -> None:
        """Hook on a parameter: its gradient of this backward pass is there, and complete."""
        if self._paused:
            return
        if parameter in unit.arrived:
            raise OrderError(
                f"a second gradient arrives at {unit.name} before optimizer.step(), and the optimizer steps inside "
                "backward passes: accumulation, a second loss, reentrant gradient checkpointing of a shared layer, or "
                "a step that was left out. Call backward and optimizer.step() once each, run other backward passes in "
                "`with backward_step.paused():`, use use_reentrant=False, or do without step_in_backward."
            )
        self._begin()
        self._held += tensor_bytes(parameter)
        self._most = max(self._most, self._held)
        unit.arrived.add(parameter)
        if len(unit.arrived) == len(unit.parameters):
            self._step(unit)

    def _begin(self) -> None:
        """Note that an optimizer step has begun."""
        if not self._begun:
            self._norms.clear()
        self._begun = True

    def _step(self, unit: _Unit) -> None:
        """Move a unit, and free its gradients."""
        assert self._optimizer is not None
        self._clip(unit.parameters)
        self._stepping = True
        try:
            with only(self._optimizer, unit.parts):
                self._optimizer.step()
        finally:
            self._stepping = False
        unit.stepped = True
        if self._left is None:
            self._leave(min(unit.parameters, key=torch.numel))
        for parameter in unit.parameters:
            if self._left is None or parameter is not self._left.parameter:
                parameter.grad = None
                self._held -= tensor_bytes(parameter)

    def _leave(self, parameter: nn.Parameter) -> None:
        """Let the gradient of a parameter that has moved be there until the loop's own step."""
        gradient = parameter.grad
        if gradient is None:
            return
        # Comparing numbers makes the host wait for the device.
        copy = gradient.clone() if self._looks < FIRST_STEPS else None
        self._left = _Left(parameter, gradient, gradient._version, copy)

    def _clip(self, parameters: Iterable[nn.Parameter]) -> None:
        """Clip the gradient of some parameters, and note its norm."""
        held = [parameter for parameter in parameters if parameter.grad is not None]
        if held and self._max_norm is not None:
            self._norms.append(nn.utils.clip_grad_norm_(held, self._max_norm))

    def _before_step(self, *ignored: Any) -> None:
        """Hook before every step of the optimizer, the loop's and those of units."""
        if self._stepping:
            return
        self._check_untouched()
        self.clip()
        for unit in self._units:
            unit.arrived.clear()
            unit.stepped = False
        self._held = 0
        self._begun = False
        self._clipped = False

    def _check_untouched(self) -> None:
        """Refuse to go on, with `OrderError`, where the loop has changed gradients after the backward pass."""
        if self._left is None:
            return
        left = self._left
        self._left = None
        self._looks += 1
        touched = left.touched()
        left.parameter.grad = None
        if not touched:
            return
        raise OrderError(
            "gradients were changed between the backward pass and optimizer.step(), as clip_grad_norm_, "
            "clip_grad_value_ and a GradScaler do. Blocks have moved inside of the backward pass by then, so nothing "
            "was clipped: remove that call, and let blocks be clipped by growth.step_in_backward(optimizer, "
            "max_norm=...). The norm of the whole gradient is in .norm of what it returns."
        )


@contextmanager
def only(optimizer: torch.optim.Optimizer, parts: dict[int, list[nn.Parameter]]) -> Iterator[None]:
    """Leave an optimizer some of its parameters, inside a `with` block; the groups stay the same objects."""
    groups = optimizer.param_groups
    held = [group["params"] for group in groups]
    try:
        for place, group in enumerate(groups):
            group["params"] = parts.get(place, [])
        yield
    finally:
        for group, parameters in zip(groups, held):
            group["params"] = parameters


def check_backward_step(
    model: nn.Module, accelerator: Any, *, accumulation: int | None = None, prepared: bool = True
) -> None:
    """Refuse loops in which a gradient is not complete when autograd hands it out.

    Args:
        model: The bare model.
        accelerator: The loop's, if there is one.
        accumulation: Most forward passes of an optimizer step; None takes those of the accelerator.
        prepared: Whether `growth.prepare` was called.

    Raises:
        OrderError: Before `prepare`; or several processes, sharded parameters, a gradient scaler or accumulation; the
            message says why.
    """
    if not prepared:
        raise OrderError("step_in_backward was called before growth.prepare: call it after.")
    if is_sharded(model):
        raise OrderError(
            "step_in_backward does not work on sharded parameters: FSDP2 reduces their gradients after autograd has "
            "handed them out. It frees them block by block itself: do without step_in_backward."
        )
    if world_size() > 1:
        raise OrderError(
            f"step_in_backward works in one process, and {world_size()} run: DistributedDataParallel averages "
            "gradients after autograd has handed them out, in buckets that hold all of them. Use one process, or do "
            "without step_in_backward."
        )
    if getattr(accelerator, "scaler", None) is not None:
        raise OrderError(
            "step_in_backward does not work with a gradient scaler (fp16), which looks at all gradients before any "
            "weight moves: use mixed_precision='bf16'."
        )
    passes: int = accumulation or getattr(accelerator, "gradient_accumulation_steps", 1)
    if passes > 1:
        raise OrderError(
            f"step_in_backward frees gradients that gradient_accumulation_steps={passes} keeps: use 1 and a "
            "larger batch, or do without step_in_backward."
        )
