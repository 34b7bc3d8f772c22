"""The frozen front of a model: it runs without gradient, which saves its activations and its whole backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from .errors import OrderError, UnitError
from .units import Layout, front


class FrozenFront:
    """Runs the frozen front of a model without gradient, by hooks that are exception-safe and removable."""

    def __init__(self) -> None:
        self._hooks = ExitStack()
        self._modes: list[bool] = []
        self._names: dict[nn.Module, str] = {}
        self._inside = False  # whether the model's own forward runs, and not one of a user's around its blocks
        self._trained_ran = False
        self._training = False
        self.without_gradient = False  # whether a block that trains was called without gradient, by a model with it

    def set(self, model: nn.Module, layout: Layout, blocks: Iterable[int]) -> None:
        """Make the front of `model` that `blocks` leave frozen (see `units.front`) run without gradient.

        A front block that runs after a trained one would lose that one's gradient: the forward pass then raises
        `UnitError`, or `OrderError` where reentrant checkpointing is to blame.
        """
        self.clear()
        trained = sorted(blocks)
        frozen = front(layout, trained)
        if not frozen:
            return
        hook = self._hooks.enter_context
        hook(model.register_forward_pre_hook(self._begin))
        hook(model.register_forward_hook(self._end, always_call=True))
        for index in trained:
            for module in called_modules(model, layout.blocks[index].modules):
                hook(module.register_forward_pre_hook(self._note_trained))
        for unit in frozen:
            for module in called_modules(model, unit.modules):
                self._names[module] = unit.name
                # First of all hooks, and also where the module raises: what others compute belongs to the front.
                hook(module.register_forward_pre_hook(self._enter, prepend=True))
                hook(module.register_forward_hook(self._leave, always_call=True))
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                hook(module.register_forward_pre_hook(_make_contiguous))

    def clear(self) -> None:
        """Remove every hook."""
        self._hooks.close()
        self._modes.clear()
        self._names.clear()
        self.without_gradient = False

    def _begin(self, *ignored: Any) -> None:
        """Forward pre-hook of the model."""
        self._inside = True
        self._trained_ran = False
        self._training = torch.is_grad_enabled()

    def _end(self, *ignored: Any) -> None:
        """Forward hook of the model."""
        self._inside = False

    def _note_trained(self, *ignored: Any) -> None:
        """Forward pre-hook of the blocks that train."""
        self._trained_ran = True
        # Reentrant checkpointing does that, and computes it again in the backward pass.
        if self._inside and self._training and not torch.is_grad_enabled():
            self.without_gradient = True

    def _enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook of the front's modules: from here on without gradient."""
        self._modes.append(torch.is_grad_enabled())
        if self._trained_ran and torch.is_grad_enabled():
            if in_backward():
                raise OrderError(
                    f"block {self._names[module]!r} is frozen, but is computed again in the backward pass: reentrant "
                    "gradient checkpointing does not know that its output needs no gradient. Use use_reentrant=False "
                    "(model.enable_gradient_checkpointing() of Diffusers does)."
                )
            # Where a loop calls the blocks itself, nothing says where the next pass begins.
            if self._inside:
                self._refuse_order(module)
        torch.set_grad_enabled(False)

    def _refuse_order(self, module: nn.Module) -> None:
        """Refuse a front block that runs after a trained one in the same pass."""
        raise UnitError(
            f"block {self._names[module]!r} ran after a block that trains, although it comes before it in the "
            "layout: its gradient would be lost. Name the blocks in the order they run with blocks=[...]."
        )

    def _leave(self, *ignored: Any) -> None:
        """Forward hook of the front's modules: back to the mode in which the module was called."""
        torch.set_grad_enabled(self._modes.pop())


def _make_contiguous(module: nn.Module, args: Any) -> Any:
    """On the CPU, torch 2.13 crashes in GroupNorm's backward where a channels-last input needs no gradient."""
    value, *others = args
    if value.requires_grad or value.device.type != "cpu":
        return None
    return (value.contiguous(), *others)


def in_backward() -> bool:
    """Whether this runs inside a backward pass."""
    return torch._C._current_graph_task_id() != -1  # torch has no public name for it


def called_modules(model: nn.Module, names: Iterable[str]) -> Iterator[nn.Module]:
    """The modules called `names`; lists of modules, which are never called themselves, give their members."""
    for name in names:
        module = model.get_submodule(name)
        if isinstance(module, nn.ModuleList):
            yield from called_modules(module, dict(module.named_children()))
        else:
            yield module
