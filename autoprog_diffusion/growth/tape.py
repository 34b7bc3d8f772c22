"""The tape of a forward pass: its operations, from which the FLOPs of any stage follow exactly.

Freezing changes no forward pass. It changes which tensors need a gradient, and so which gradients the backward pass
computes. The tape holds, of every operation, the FLOPs of the gradient of each of its inputs; a stage then costs a
walk over the tape.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, sdpa_backward_flop_count

from .frozen_front import called_modules
from .units import Layout, trainable_names


# Operation -> places of its two factors; the gradient of each costs what the product does.
FACTORS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
CONVOLUTIONS = ("convolution", "_convolution")


@dataclass(frozen=True)
class Entry:
    """One operation of a forward pass.

    Attributes:
        block: Index of the block it ran in; None outside of all.
        inputs: Storages it read.
        outputs: Storages it wrote.
        flops: Its own.
        gradients: Storage of an input -> FLOPs of its gradient.
        together: FLOPs of the gradients of all inputs, which are computed together if one of them is needed.
    """

    block: int | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    flops: int = 0
    gradients: tuple[tuple[int, int], ...] = ()
    together: int = 0

    def backward(self, needed: Collection[int]) -> int:
        """FLOPs of the gradients of the inputs that need one.

        Args:
            needed: Storages that need a gradient.
        """
        total = 0
        for storage, flops in self.gradients:
            if storage in needed:
                total += flops
        if any(storage in needed for storage in self.inputs):
            total += self.together
        return total


@dataclass(frozen=True)
class Call:
    """An operation that has just run.

    Attributes:
        name: Of the operation, without its overload.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        result: What it returned.
        flops: Its FLOPs.
        key: Gives the storage of a tensor.
    """

    name: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    result: Any
    flops: int
    key: Callable[[Tensor], int]

    @property
    def inputs(self) -> tuple[Any, ...]:
        """All arguments."""
        return (*self.args, *self.kwargs.values())

    def storages(self, values: Any) -> tuple[int, ...]:
        """Storages of the tensors among some values, each once."""
        found: dict[int, None] = {}
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                found[self.key(value)] = None
        return tuple(found)


@dataclass
class Tape:
    """The operations of a forward pass.

    Attributes:
        parameters: Name of a parameter -> its storage.
        always: Storages of what trains in every stage beside the model, the stage embedding.
        entries: The operations.
        block: Index of the block that runs now.
        exact: Whether the gradients of all operations are known.
    """

    parameters: dict[str, int] = field(default_factory=dict)
    always: set[int] = field(default_factory=set)
    entries: list[Entry] = field(default_factory=list)
    block: int | None = None
    exact: bool = True
    _used: list[bool] = field(default_factory=list)
    _outer: list[int | None] = field(default_factory=list)

    def note(self, call: Call) -> None:
        """Append an operation, unless it has no FLOPs and nothing flows from one storage to another, as in a view."""
        inputs = call.storages(call.inputs)
        outputs = call.storages((call.result,))
        if not call.flops and (not outputs or set(inputs) <= set(outputs)):
            return
        entry = Entry(
            block=self.block,
            inputs=inputs,
            outputs=outputs,
            flops=call.flops,
        )
        if call.flops:
            found = gradient_flops(call)
            self.exact = self.exact and found.known
            entry = replace(
                entry,
                gradients=found.separate,
                together=found.together,
            )
        self.entries.append(entry)

    @contextmanager
    def following(self, model: nn.Module, layout: Layout) -> Iterator[None]:
        """Inside a `with` block, the tape knows which block of a model runs.

        Args:
            model: The bare model.
            layout: Its units.
        """
        with ExitStack() as hooks:
            for index, unit in enumerate(layout.blocks):
                for module in called_modules(model, unit.modules):
                    enter = module.register_forward_pre_hook(partial(self._enter, index), prepend=True)
                    hooks.enter_context(enter)
                    hooks.enter_context(module.register_forward_hook(self._leave))
            yield

    def _enter(self, index: int, *ignored: Any) -> None:
        """Forward pre-hook of a block's modules."""
        self._outer.append(self.block)
        self.block = index

    def _leave(self, *ignored: Any) -> None:
        """Forward hook of a block's modules."""
        self.block = self._outer.pop()

    def end(self) -> None:
        """The forward pass has ended with the loss; only what that depends on has a backward pass."""
        wanted = set(self.entries[-1].outputs) if self.entries else set()
        used = []
        for entry in reversed(self.entries):
            found = not wanted.isdisjoint(entry.outputs)
            if found:
                wanted.update(entry.inputs)
            used.append(found)
        self._used = used[::-1]

    @property
    def ran(self) -> set[int]:
        """Indices of the blocks that ran. A model that grows deeper runs some of its blocks only."""
        return {entry.block for entry in self.entries if entry.block is not None}

    def stage_flops(self, layout: Layout, blocks: Collection[int]) -> int:
        """FLOPs of a forward and backward pass of a stage.

        Args:
            layout: Units of the model.
            blocks: Indices of the blocks that train.
        """
        first = 0 if layout.inputs_always else min(blocks, default=len(layout.blocks))
        return self.flops(trainable_names(layout, blocks), range(first))

    def flops(self, trained: Iterable[str], front: Collection[int]) -> int:
        """FLOPs of a forward and backward pass.

        Args:
            trained: Names of the parameters that train.
            front: Indices of the blocks that run without gradient.
        """
        needed = {self.parameters[name] for name in trained} | self.always
        total = 0
        for entry, used in zip(self.entries, self._used, strict=True):
            total += entry.flops
            if entry.block in front or needed.isdisjoint(entry.inputs):
                continue
            if used:
                total += entry.backward(needed)
            needed.update(entry.outputs)
        return total


@dataclass(frozen=True)
class Gradients:
    """FLOPs of the gradients of an operation's inputs.

    Attributes:
        separate: Storage of an input -> FLOPs of its gradient.
        together: FLOPs of those that are computed together.
        known: Whether the operation is known; one that is not is taken for twice its forward pass.
    """

    separate: tuple[tuple[int, int], ...] = ()
    together: int = 0
    known: bool = True


def gradient_flops(call: Call) -> Gradients:
    """FLOPs of the gradients of an operation's inputs.

    Args:
        call: The operation.
    """
    if call.name in FACTORS:
        factors = [call.args[place] for place in FACTORS[call.name]]
        return Gradients(tuple((call.key(factor), call.flops) for factor in factors))
    if call.name in CONVOLUTIONS:
        return Gradients(convolution_gradients(call))
    if "attention" in call.name:
        query, key, value, *_ = call.args
        output = tree_leaves(call.result)[0]
        flops = sdpa_backward_flop_count(
            output.shape,
            query.shape,
            key.shape,
            value.shape,
        )
        return Gradients(together=flops)
    return Gradients(together=2 * call.flops, known=False)


def convolution_gradients(call: Call) -> tuple[tuple[int, int], ...]:
    """FLOPs of the gradients of a convolution's input and weight, as PyTorch's counter counts them."""
    x, weight, *_ = call.args
    transposed = bool(call.args[6])
    output = call.result.shape
    to_input = conv_flop_count(
        output,
        weight.shape,
        x.shape,
        transposed=not transposed,
    )
    # The product of input and result, in the order that the kind of the convolution gives them.
    first = output if transposed else x.shape
    second = x.shape if transposed else output
    to_weight = conv_flop_count(
        swapped(first),
        swapped(second),
        swapped(weight.shape),
        transposed=False,
    )
    return (
        (call.key(x), to_input),
        (call.key(weight), to_weight),
    )


def swapped(shape: torch.Size) -> list[int]:
    """A shape with its first two sizes exchanged."""
    first, second, *rest = shape
    return [second, first, *rest]
