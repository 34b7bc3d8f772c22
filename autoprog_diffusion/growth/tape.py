"""What a forward pass did, operation by operation, from which the FLOPs of any stage follow exactly.

Freezing changes no forward pass. It changes which tensors need a gradient, and so which gradients the backward pass
computes. The tape holds, of every operation, the FLOPs of the gradient of each of its inputs; a stage then costs a
walk over the tape.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, sdpa_backward_flop_count

from .flops import flop_counter
from .frozen_front import called_modules
from .units import Layout, trainable_names


# Operation -> places of its two factors; the gradient of each costs what the product does.
FACTORS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
CONVOLUTIONS = ("convolution", "_convolution")
PLAIN = (Tensor, nn.Parameter)


# Operation -> its FLOPs.
FORMULAS = flop_counter().flop_registry


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
        total = sum(flops for storage, flops in self.gradients if storage in needed)
        if self.together and any(storage in needed for storage in self.inputs):
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
        tensors = (value for value in tree_leaves(values) if isinstance(value, Tensor))
        return tuple(dict.fromkeys(map(self.key, tensors)))


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
        gradients, together, known = gradient_flops(call) if call.flops else ((), 0, True)
        self.exact = self.exact and known
        self.entries.append(
            Entry(
                block=self.block,
                inputs=inputs,
                outputs=outputs,
                flops=call.flops,
                gradients=gradients,
                together=together,
            )
        )

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


def gradient_flops(call: Call) -> tuple[tuple[tuple[int, int], ...], int, bool]:
    """FLOPs of the gradients of an operation's inputs.

    Args:
        call: The operation.

    Returns:
        Storage of an input and the FLOPs of its gradient; FLOPs of gradients that are computed together; and whether
        the operation is known. One that is not is taken for twice its forward pass.
    """
    if call.name in FACTORS:
        places = FACTORS[call.name]
        return tuple((call.key(call.args[place]), call.flops) for place in places), 0, True
    if call.name in CONVOLUTIONS:
        return convolution_gradients(call), 0, True
    if "attention" in call.name:
        query, key, value, *_ = call.args
        output = tree_leaves(call.result)[0]
        flops = sdpa_backward_flop_count(output.shape, query.shape, key.shape, value.shape)
        return (), flops, True
    return (), 2 * call.flops, False


def convolution_gradients(call: Call) -> tuple[tuple[int, int], ...]:
    """FLOPs of the gradients of a convolution's input and weight, as PyTorch's counter counts them."""
    x, weight, *_ = call.args
    transposed = bool(call.args[6])
    output = call.result.shape
    to_input = conv_flop_count(output, weight.shape, x.shape, transposed=not transposed)
    if transposed:
        to_weight = conv_flop_count(swapped(output), swapped(x.shape), swapped(weight.shape), transposed=False)
    else:
        to_weight = conv_flop_count(swapped(x.shape), swapped(output), swapped(weight.shape), transposed=False)
    return (call.key(x), to_input), (call.key(weight), to_weight)


def swapped(shape: torch.Size) -> list[int]:
    """A shape with its first two sizes exchanged."""
    first, second, *rest = shape
    return [second, first, *rest]


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
