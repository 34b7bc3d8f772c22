"""Whether every block that trains gets a gradient: reentrant checkpointing behind a frozen front gives it none."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OrderError
from ..frozen_front import FrozenFront, called_modules
from ..units import Unit
from .optimizers import parameters_in


CURES = (
    "Reentrant gradient checkpointing does that, where nothing before the block trains: use use_reentrant=False "
    "(model.enable_gradient_checkpointing() of Diffusers does), or let its inputs require gradient "
    "(enable_input_require_grads). So do torch.no_grad() and detach() in or around the block."
)


@dataclass(eq=False)
class _Part:
    """A module of a block, with its parameters that train.

    A single tensor without gradient is no fault: models have tensors that they never use, and experts that no sample
    is sent to. A module in which nothing gets one is, unless it did not run.
    """

    module: str
    parameters: list[nn.Parameter]
    stepped: bool = field(default=False, init=False)  # an optimizer that holds it has stepped
    cut: bool = field(default=False, init=False)  # it computed something that gradients cannot come back through


class GradientWatch:
    """Looks, in the first steps of a stage, whether gradients arrive at the blocks that train.

    Args:
        model: The bare model.
        front: Its frozen front, which sees blocks that are called without gradient.
    """

    def __init__(self, model: nn.Module, front: FrozenFront) -> None:
        self._model = model
        self._front = front
        self._waiting: list[_Part] = []
        self._all = 0
        self._first: _Part | None = None
        self._looks = 0
        self._arrived = False  # whether any parameter of this model got a gradient
        self._trains_now = False  # whether the model was called with gradient
        # Optimizers that some gradient has arrived at since the last `check`.
        self._moved: weakref.WeakSet[Any] = weakref.WeakSet()
        self._hooks = ExitStack()

    def enter(self, blocks: Iterable[Unit]) -> None:
        """Begin to look, in a stage that trains `blocks`."""
        self.stop()
        named = dict(self._model.named_parameters())
        for block in blocks:
            trains = [name for name in block.parameters if named[name].requires_grad]
            for module in block.modules:
                inside = [named[name] for name in trains if name == module or name.startswith(f"{module}.")]
                if inside:
                    self._waiting.append(_Part(module, inside))
        self._all = len(self._waiting)
        self._first = self._waiting[0] if self._waiting else None

    def stop(self) -> None:
        """Look no more."""
        self._hooks.close()
        self._waiting = []
        self._arrived = False
        self._looks = 0

    def after_step(self, held: set[nn.Parameter], optimizer: Any) -> None:
        """Look at the gradients of the parameters that an optimizer, which has just stepped, holds of this model."""
        if not self._waiting:
            return
        arrived = any(parameter.grad is not None for parameter in held)
        if arrived:
            self._moved.add(optimizer)
        elif optimizer not in self._moved and all(each.grad is None for each in parameters_in(optimizer)):
            # A step without a backward pass, rather than the end of one in which gradients were used and freed.
            return
        self._arrived = self._arrived or arrived
        waiting = []
        for part in self._waiting:
            own = [parameter for parameter in part.parameters if parameter in held]
            part.stepped = part.stepped or len(own) > 0
            if all(parameter.grad is None for parameter in own):
                waiting.append(part)
        self._waiting = waiting

    def check(self) -> None:
        """Refuse to go on where a block's gradient does not arrive.

        Where nothing says why it did not, the modules may have been left out (layer dropping): the next step is
        watched too.

        Raises:
            OrderError: It names the first modules and the likely cause.
        """
        self._moved.clear()
        lacking = [part for part in self._waiting if part.stepped]
        if not lacking:
            return
        self._looks += 1
        # Recomputation that loses gradients loses the first ones, up to a layer outside of it.
        likely = len(lacking) == self._all or self._first in lacking
        # Where only another model of the optimizer got gradients, it may have trained alone.
        certain = likely and self._arrived and (self._front.without_gradient or _recomputes(self._model))
        if not certain and self._looks == 1:
            self._look_again(lacking)
            return
        wrong = [part for part in lacking if certain or part.cut]
        if wrong:
            tensors = sum(len(part.parameters) for part in wrong)
            names = [part.module for part in wrong[:3]]
            raise OrderError(
                f"no gradient arrives at {len(wrong)} of the {self._all} modules that train in this stage, first "
                f"{names} ({tensors} tensors): they would stay as they are. {CURES}"
            )
        self.stop()

    def _look_again(self, parts: Sequence[_Part]) -> None:
        """Watch from now on what modules do."""
        hook = self._hooks.enter_context
        hook(self._model.register_forward_pre_hook(self._begin))
        self._waiting = list(parts)
        for part in parts:
            part.stepped = False
            for module in called_modules(self._model, [part.module]):
                hook(module.register_forward_hook(partial(self._note, part), with_kwargs=True))

    def _begin(self, *ignored: Any) -> None:
        """Forward pre-hook of the model: validation runs without gradient."""
        self._trains_now = torch.is_grad_enabled()

    def _note(self, part: _Part, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook of a module: does what it computed carry gradients?"""
        given = set(map(id, [*_tensors(args), *_tensors(kwargs)]))
        # A block that is left out may return its input.
        computed = [tensor for tensor in _tensors(output) if id(tensor) not in given]
        if self._trains_now and computed and not any(tensor.requires_grad for tensor in computed):
            part.cut = True


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _recomputes(model: nn.Module) -> bool:
    """Whether gradient checkpointing is on, under the names of Diffusers, transformers and timm."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False) or getattr(module, "grad_checkpointing", False):
            return True
    return False
