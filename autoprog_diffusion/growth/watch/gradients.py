"""Whether every block that trains gets a gradient: reentrant checkpointing behind a frozen front gives it none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import OrderError
from ..frozen_front import called_modules
from ..units import Unit


CURES = (
    "Reentrant gradient checkpointing does that, where nothing before the block trains: use use_reentrant=False "
    "(model.enable_gradient_checkpointing() of Diffusers does), or let its inputs require gradient "
    "(enable_input_require_grads). So do torch.no_grad() and detach() in or around the block."
)


@dataclass(eq=False)
class _Part:
    """A module of a block, with its parameters that train.

    A single tensor without gradient is no fault: models have tensors that they never use, and experts that no sample
    is sent to. A module in which nothing gets one is.
    """

    module: str
    parameters: list[nn.Parameter]
    stepped: bool = field(default=False, init=False)  # an optimizer that holds it has stepped
    ran: bool = field(default=False, init=False)  # its forward pass was seen


class GradientWatch:
    """Looks, in the first steps of a stage, whether gradients arrive at the blocks that train.

    Args:
        model: The bare model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._waiting: list[_Part] = []
        self._all = 0
        self._first: _Part | None = None
        self._looks = 0
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
        self._looks = 0

    def after_step(self, held: set[nn.Parameter]) -> None:
        """Look at the gradients of the parameters that an optimizer, which has just stepped, holds."""
        if not self._waiting or all(parameter.grad is None for parameter in held):
            return
        waiting = []
        for part in self._waiting:
            own = [parameter for parameter in part.parameters if parameter in held]
            part.stepped = part.stepped or len(own) > 0
            if all(parameter.grad is None for parameter in own):
                waiting.append(part)
        self._waiting = waiting

    def check(self) -> None:
        """Refuse to go on where a block's gradient does not arrive.

        Where only some parts lack it they may not have run, as under layer dropping: a second step decides then.

        Raises:
            OrderError: It names the first modules and the likely cause.
        """
        lacking = [part for part in self._waiting if part.stepped]
        if not lacking:
            return
        self._looks += 1
        # Recomputation that loses gradients loses the first ones, up to a layer outside of it.
        certain = len(lacking) == self._all or (self._first in lacking and _recomputes(self._model))
        if not certain and self._looks == 1:
            self._look_again(lacking)
            return
        wrong = [part for part in lacking if certain or part.ran]
        if wrong:
            tensors = sum(len(part.parameters) for part in wrong)
            names = [part.module for part in wrong[:3]]
            raise OrderError(
                f"no gradient arrives at {len(wrong)} of the {self._all} modules that train in this stage, first "
                f"{names} ({tensors} tensors): they would stay as they are. {CURES}"
            )
        self.stop()

    def _look_again(self, parts: Sequence[_Part]) -> None:
        """Watch from now on whether modules run."""
        self._waiting = list(parts)
        for part in parts:
            part.stepped = False
            for module in called_modules(self._model, [part.module]):

                def note(*ignored: Any, part: _Part = part) -> None:
                    part.ran = True

                self._hooks.enter_context(module.register_forward_pre_hook(note))


def _recomputes(model: nn.Module) -> bool:
    """Whether gradient checkpointing is on, under the names of Diffusers, transformers and timm."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False) or getattr(module, "grad_checkpointing", False):
            return True
    return False
