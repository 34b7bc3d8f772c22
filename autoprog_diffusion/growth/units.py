"""Units: the named slices of a model that freeze together, and how they are frozen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from operator import attrgetter

from torch import nn

from .errors import UnitError


@dataclass(frozen=True)
class Unit:
    """A set of parameters that freezes together.

    Attributes:
        name: Name for messages and plans, for example `down_blocks.0.resnets.0`.
        modules: Names of the submodules it consists of, in the order they run.
        parameters: Names of its parameters, as `model.named_parameters()` gives them.
    """

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """A model cut into units: every parameter that may ever train is in exactly one.

    Attributes:
        inputs: The modules before the blocks (patch, time and label embedders). They train together with block 0,
            since the frozen front of the model runs without gradient (see `front`).
        blocks: The growable units, in forward order.
        outputs: Everything else (norms and the output head). Always trained.
        inputs_always: Whether the inputs train at all times; no front runs without gradient then.
    """

    inputs: Unit
    blocks: tuple[Unit, ...]
    outputs: Unit
    inputs_always: bool = False

    @property
    def units(self) -> tuple[Unit, ...]:
        """All units in forward order."""
        return (self.inputs, *self.blocks, self.outputs)

    @property
    def names(self) -> set[str]:
        """Names of all parameters in the units."""
        return {name for unit in self.units for name in unit.parameters}


def build_layout(model: nn.Module, blocks: Sequence[Sequence[str]], inputs: Sequence[str]) -> Layout:
    """Cut a model into units.

    Args:
        model: The bare model, not wrapped.
        blocks: For every growable unit, in forward order, the names of its modules; it is called as the first of them.
        inputs: Names of modules or parameters that belong to the input unit; they win over a block that holds them
            (DiT keeps its timestep embedder inside block 0 and calls it from outside).

    Raises:
        UnitError: There is no block, a parameter is in two units, or a block holds no parameter.
    """
    if not blocks:
        raise UnitError(f"{type(model).__name__} has no growable block: name some with blocks=[...].")
    # Shared parameters count once, under the name that `named_parameters` gives them.
    names = {parameter: name for name, parameter in model.named_parameters()}
    # Parameter name -> number of its unit; the inputs, number 0, come first and win.
    owner = dict.fromkeys(_parameters_under(model, inputs, names), 0)
    for index, modules in enumerate(blocks, start=1):
        for name in _parameters_under(model, modules, names):
            first = owner.setdefault(name, index)
            if first not in (0, index):
                raise UnitError(
                    f"parameter {name!r} is in two blocks, {blocks[first - 1][0]!r} and {modules[0]!r}: blocks must "
                    "not overlap or share parameters (tie them inside one block)."
                )
        if index not in owner.values():
            raise UnitError(f"block {modules[0]!r} holds no parameter of its own: leave it out of blocks.")
    units = [Unit("inputs", tuple(inputs), ())]
    units += [Unit(modules[0], tuple(modules), ()) for modules in blocks]
    # What no other unit owns goes to the outputs, which come last.
    units.append(Unit("outputs", (), ()))
    members = [[] for _ in units]
    for name in names.values():
        members[owner.get(name, -1)].append(name)
    input_unit, *grown, output_unit = map(_with_parameters, units, members)
    return Layout(inputs=input_unit, blocks=tuple(grown), outputs=output_unit)


def layout_from_patterns(model: nn.Module, patterns: Sequence[str]) -> Layout:
    """Cut a model by user-given patterns of module names, for example `["layers.*"]`; `*` stops at a dot.

    Modules before the first match, in registration order, are the inputs, the rest the outputs.

    Raises:
        UnitError: A pattern matches nothing, or two matches overlap; the message lists names that exist.
    """
    if not patterns:
        raise UnitError('blocks=[] names no block: give patterns of module names, for example blocks=["layers.*"].')
    _, *modules = dict(model.named_modules())
    matched = []
    for pattern in patterns:
        hits = [name for name in modules if _matches(name, pattern)]
        if not hits:
            known = sorted({re.sub(r"\b\d+\b", "*", name) for name in modules})
            raise UnitError(f"blocks pattern {pattern!r} matches no module; patterns that would: {known[:20]}.")
        twice = sorted(set(hits).intersection(matched))
        if twice:
            raise UnitError(f"blocks pattern {pattern!r} names {twice} again: patterns must not overlap.")
        matched += hits
    for name in matched:
        inner = [other for other in matched if other.startswith(f"{name}.")]
        if inner:
            raise UnitError(f"blocks {inner} lie inside block {name!r}: blocks must not overlap.")
    children = list(dict(model.named_children()))
    first = min(children.index(name.split(".")[0]) for name in matched)
    # If a top-level child holds blocks and other modules, those other modules count as outputs.
    return build_layout(model, [[name] for name in matched], children[:first])


def only_growing(model: nn.Module, layout: Layout, *, inputs_always: bool = False) -> Layout:
    """The layout without the parameters that the user froze before growth began (all but the adapters, with LoRA).

    A block left with none joins the block before it, so that every step of the growth opens something.

    Args:
        model: The bare model.
        layout: Its units.
        inputs_always: Whether the inputs shall train at all times; without a parameter that trains they cannot.

    Raises:
        UnitError: No block holds a parameter that requires gradient.
    """
    growing = trainable_now(model)
    if layout.names <= growing:
        return replace(layout, inputs_always=inputs_always)
    blocks = [Unit("", (), ())]
    for unit in layout.blocks:
        last = blocks[-1]
        kept = _only(unit, growing)
        if last.parameters and kept.parameters:
            blocks.append(kept)
        else:
            # Blocks without parameters that come before all others join the block after them.
            name = last.name if last.parameters else kept.name
            blocks[-1] = Unit(name, last.modules + kept.modules, last.parameters + kept.parameters)
    if not blocks[0].parameters:
        raise UnitError(
            f"no block of this {type(model).__name__} holds a parameter that requires gradient{_why_frozen(model)}: "
            "call requires_grad_(True), or model.add_adapter(LoraConfig(...)) before constructing GrowthScheduler."
        )
    inputs = _only(layout.inputs, growing)
    always = inputs_always and len(inputs.parameters) > 0
    return Layout(inputs, tuple(blocks), _only(layout.outputs, growing), inputs_always=always)


def trainable_names(layout: Layout, blocks: Iterable[int]) -> set[str]:
    """Names of the parameters that train when `blocks` do.

    While block 0 is frozen, so are the inputs: nothing before the first trained block can receive a full gradient.
    With `inputs_always` they train, and nothing runs without gradient.
    """
    return {name for unit in trained_units(layout, blocks) for name in unit.parameters}


def trained_units(layout: Layout, blocks: Iterable[int]) -> list[Unit]:
    """The units that train when `blocks` do, in forward order: the inputs together with block 0, or always."""
    chosen = sorted(set(blocks))
    units = [layout.blocks[index] for index in chosen]
    if 0 in chosen or layout.inputs_always:
        units.insert(0, layout.inputs)
    return [*units, layout.outputs]


def front(layout: Layout, blocks: Iterable[int]) -> tuple[Unit, ...]:
    """The frozen blocks that run before all that trains; they can run without gradient."""
    if layout.inputs_always:
        return ()
    return layout.blocks[: min(blocks, default=len(layout.blocks))]


def block_sizes(model: nn.Module, layout: Layout) -> list[int]:
    """Number of parameters of every block, of those that may ever train."""
    named = dict(model.named_parameters())
    return [sum(named[name].numel() for name in unit.parameters) for unit in layout.blocks]


def modules_in(model: nn.Module, unit: Unit) -> Iterator[nn.Module]:
    """The modules of a unit, and all inside of them; parameters that a unit names are left out."""
    for name in unit.modules:
        found = attrgetter(name)(model)
        if isinstance(found, nn.Module):
            yield from found.modules()


def unit_of_modules(model: nn.Module, layout: Layout) -> dict[nn.Module, int]:
    """Every module of a model with the index of its unit: the outputs' where no unit names it."""
    found = dict.fromkeys(model.modules(), len(layout.units) - 1)
    for index, unit in enumerate(layout.units):
        found.update(dict.fromkeys(modules_in(model, unit), index))
    return found


def count_trainable(model: nn.Module) -> tuple[int, int]:
    """Number of the model's parameters that train now, and of all."""
    trainable = total = 0
    for parameter in model.parameters():
        total += parameter.numel()
        trainable += parameter.numel() * parameter.requires_grad
    return trainable, total


def trainable_now(model: nn.Module) -> set[str]:
    """Names of the model's parameters that require gradient now."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def set_trainable(model: nn.Module, names: set[str]) -> None:
    """Let exactly the parameters in `names` train; a frozen one loses its gradient, so no optimizer moves it."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if name not in names:
            parameter.grad = None


def _parameters_under(model: nn.Module, prefixes: Iterable[str], names: dict[nn.Parameter, str]) -> Iterator[str]:
    """Canonical names of the parameters in the modules, or of the parameters, called `prefixes`."""
    for prefix in prefixes:
        found = attrgetter(prefix)(model)
        if isinstance(found, nn.Module):
            yield from map(names.__getitem__, found.parameters())
        else:
            yield names[found]


def _only(unit: Unit, names: set[str]) -> Unit:
    """The unit with those of its parameters that are in `names`."""
    return _with_parameters(unit, filter(names.__contains__, unit.parameters))


def _with_parameters(unit: Unit, names: Iterable[str]) -> Unit:
    """The unit with other parameters."""
    return replace(unit, parameters=tuple(names))


def _why_frozen(model: nn.Module) -> str:
    """A reason why a model has no trainable block, for messages; empty if none is known."""
    floating = all(parameter.is_floating_point() for parameter in model.parameters())
    if floating and not getattr(model, "is_quantized", False):
        return ""
    return " (quantised weights cannot train, LoRA adapters on top of them can)"


def _matches(name: str, pattern: str) -> bool:
    """Whether a module's name matches a pattern, part by part between the dots."""
    parts = name.split(".")
    wanted = pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
