"""Units: the named slices of a model that freeze together, and how they are frozen."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

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
        inputs: The modules before the blocks (patch, time and label embedders). Always trained, except while the
            front of the model is frozen (see `front`).
        blocks: The growable units, in forward order.
        outputs: Everything else (norms and the output head). Always trained.
    """

    inputs: Unit
    blocks: tuple[Unit, ...]
    outputs: Unit

    @property
    def units(self) -> tuple[Unit, ...]:
        """All units in forward order."""
        return (self.inputs, *self.blocks, self.outputs)

    @property
    def names(self) -> set[str]:
        """Names of all parameters in the units."""
        return {name for unit in self.units for name in unit.parameters}


def build_layout(
    model: nn.Module,
    blocks: Sequence[tuple[str, Sequence[str]]],
    inputs: Sequence[str],
) -> Layout:
    """Cut a model into units.

    Args:
        model: The bare model, not wrapped.
        blocks: For every growable unit its name and the names of its modules, in forward order.
        inputs: Names of modules or parameters that belong to the input unit; they win over a block that holds them
            (DiT keeps its timestep embedder inside block 0 and calls it from outside).

    Raises:
        UnitError: There is no block, a parameter is in two units, or a block holds no parameter.
    """
    if not blocks:
        raise UnitError(f"{type(model).__name__} has no growable block: name some with blocks=[...].")
    # Shared parameters count once, under the name that `named_parameters` gives them.
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    # Parameter name -> index of its unit in `layout.units`, from 0 for the inputs.
    owner: dict[str, int] = {}
    for prefix in inputs:
        owner.update(dict.fromkeys(_parameters_under(model, prefix, names), 0))
    for index, (unit_name, modules) in enumerate(blocks, start=1):
        holds_own = False
        for name in [name for module in modules for name in _parameters_under(model, module, names)]:
            first = owner.setdefault(name, index)
            if first not in (0, index):
                raise UnitError(
                    f"parameter {name!r} is in two blocks, {blocks[first - 1][0]!r} and {unit_name!r}: blocks must "
                    "not overlap or share parameters (tie them inside one block)."
                )
            holds_own = holds_own or first == index
        if not holds_own:
            raise UnitError(f"block {unit_name!r} holds no parameter of its own: leave it out of blocks.")
    members: list[list[str]] = [[] for _ in range(len(blocks) + 2)]
    for name in names.values():
        members[owner.get(name, -1)].append(name)
    units = [Unit(name, tuple(modules), tuple(own)) for (name, modules), own in zip(blocks, members[1:-1])]
    return Layout(
        inputs=Unit("inputs", tuple(inputs), tuple(members[0])),
        blocks=tuple(units),
        outputs=Unit("outputs", (), tuple(members[-1])),
    )


def layout_from_patterns(model: nn.Module, patterns: Sequence[str]) -> Layout:
    """Cut a model by user-given patterns of module names, for example `["layers.*"]`; `*` stops at a dot.

    Modules before the first match, in registration order, are the inputs, the rest the outputs.

    Raises:
        UnitError: A pattern matches nothing, or two matches overlap; the message lists names that exist.
    """
    if not patterns:
        raise UnitError('blocks=[] names no block: give patterns of module names, for example blocks=["layers.*"].')
    modules = [name for name, _ in model.named_modules() if name]
    matched: list[str] = []
    for pattern in patterns:
        hits = [name for name in modules if _matches(name, pattern)]
        if not hits:
            known = sorted({_as_pattern(name) for name in modules})
            raise UnitError(f"blocks pattern {pattern!r} matches no module; patterns that would: {known[:20]}.")
        twice = sorted(set(hits) & set(matched))
        if twice:
            raise UnitError(f"blocks pattern {pattern!r} names {twice} again: patterns must not overlap.")
        matched += hits
    for name in matched:
        inner = [other for other in matched if other.startswith(name + ".")]
        if inner:
            raise UnitError(f"blocks {inner} lie inside block {name!r}: blocks must not overlap.")
    children = [name for name, _ in model.named_children()]
    first = min(children.index(name.split(".")[0]) for name in matched)
    # If a top-level child holds blocks and other modules, those other modules count as outputs.
    return build_layout(model, [(name, [name]) for name in matched], children[:first])


def only_growing(model: nn.Module, layout: Layout) -> Layout:
    """The layout without the parameters that the user froze before growth began (all but the adapters, with LoRA).

    A block left with none joins the block before it, so that every step of the growth opens something.

    Raises:
        UnitError: No block holds a parameter that requires gradient.
    """
    growing = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if all(name in growing for unit in layout.units for name in unit.parameters):
        return layout
    blocks: list[Unit] = []
    # Modules of blocks without parameters, before the first block that has some.
    leading: tuple[str, ...] = ()
    for unit in layout.blocks:
        kept = _only(unit, growing)
        if kept.parameters:
            blocks.append(replace(kept, modules=leading + unit.modules))
            leading = ()
        elif blocks:
            blocks[-1] = replace(blocks[-1], modules=blocks[-1].modules + unit.modules)
        else:
            leading += unit.modules
    if not blocks:
        raise UnitError(
            f"no block of this {type(model).__name__} holds a parameter that requires gradient{_why_frozen(model)}: "
            "call requires_grad_(True), or model.add_adapter(LoraConfig(...)) before constructing GrowthScheduler."
        )
    return Layout(_only(layout.inputs, growing), tuple(blocks), _only(layout.outputs, growing))


def trainable_names(layout: Layout, blocks: Iterable[int]) -> set[str]:
    """Names of the parameters that train when `blocks` do.

    While block 0 is frozen, so are the inputs: nothing before the first trained block can receive a full gradient.
    """
    trained = [layout.blocks[index] for index in set(blocks)]
    if layout.blocks[0] in trained:
        trained.append(layout.inputs)
    return {name for unit in (*trained, layout.outputs) for name in unit.parameters}


def front(layout: Layout, blocks: Iterable[int]) -> tuple[Unit, ...]:
    """The frozen blocks that run before the first trained one; they can run without gradient."""
    return layout.blocks[: min(blocks, default=len(layout.blocks))]


def count_trainable(model: nn.Module) -> tuple[int, int]:
    """Number of the model's parameters that train now, and of all."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return trainable, sum(parameter.numel() for parameter in model.parameters())


def set_trainable(model: nn.Module, names: set[str]) -> None:
    """Let exactly the parameters in `names` train; a frozen one loses its gradient, so no optimizer moves it."""
    for name, parameter in model.named_parameters():
        trains = name in names
        parameter.requires_grad_(trains)
        if not trains:
            parameter.grad = None


def _parameters_under(model: nn.Module, prefix: str, names: dict[int, str]) -> list[str]:
    """Canonical names of the parameters in the module, or of the parameter, called `prefix`."""
    parent, _, leaf = prefix.rpartition(".")
    holder = model.get_submodule(parent)
    if leaf in holder._parameters:
        parameter = holder._parameters[leaf]
        return [] if parameter is None else [names[id(parameter)]]
    return [names[id(parameter)] for parameter in model.get_submodule(prefix).parameters()]


def _only(unit: Unit, names: set[str]) -> Unit:
    """The unit with those of its parameters that are in `names`."""
    return replace(unit, parameters=tuple(name for name in unit.parameters if name in names))


def _why_frozen(model: nn.Module) -> str:
    quantised = getattr(model, "is_quantized", False) or any(not p.is_floating_point() for p in model.parameters())
    return " (quantised weights cannot train, LoRA adapters on top of them can)" if quantised else ""


def _matches(name: str, pattern: str) -> bool:
    parts = name.split(".")
    wanted = pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _as_pattern(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
