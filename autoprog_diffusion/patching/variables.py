"""Where the variables of a function get their values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import libcst as cst

from .source import Scope, Source


@dataclass(frozen=True)
class Assignment:
    """One variable, or attribute, that gets a value.

    Attributes:
        target: Its name, with dots.
        value: What it is assigned, or unpacked from.
        index: Its place in an unpacked tuple; None where it gets the whole value.
        node: The statement's node.
    """

    target: str
    value: cst.BaseExpression
    index: int | None
    node: cst.CSTNode


class Variables:
    """The assignments of one scope, without those of functions inside of it.

    Args:
        source: The script.
        scope: A function, or the module.
    """

    def __init__(self, source: Source, scope: Scope) -> None:
        self.source = source
        self.scope = scope
        body = scope if isinstance(scope, cst.Module) else scope.body
        self.nodes = list(source.walk(body, inner=False))
        self.assignments = [one for node in self.nodes for one in assignments_of(source, node)]

    def of(self, name: str) -> list[Assignment]:
        """The assignments to a name, in the order of the text."""
        return [one for one in self.assignments if one.target == name]

    def derived(self, name: str) -> set[str]:
        """A variable, and those whose values were computed from it, one from the other."""
        found = {name}
        size = 0
        while size != len(found):
            size = len(found)
            for one in self.assignments:
                if not self.source.names(one.value).isdisjoint(found):
                    found.add(one.target.partition(".")[0])
        return found


def assignments_of(source: Source, node: cst.CSTNode) -> Iterator[Assignment]:
    """The assignments that a statement makes."""
    if isinstance(node, cst.Assign):
        for target in node.targets:
            yield from targets_of(source, target.target, node)
    elif isinstance(node, cst.AnnAssign) and node.value is not None:
        yield Assignment(source.code(node.target), node.value, None, node)
    elif isinstance(node, cst.AugAssign):
        yield Assignment(source.code(node.target), node.value, None, node)
    elif isinstance(node, cst.NamedExpr):
        yield Assignment(source.code(node.target), node.value, None, node)


def targets_of(source: Source, target: cst.BaseExpression, node: cst.Assign) -> Iterator[Assignment]:
    """The assignments of one target, which may be a tuple."""
    if isinstance(target, cst.Tuple | cst.List):
        for index, element in enumerate(target.elements):
            yield Assignment(source.code(element.value), node.value, index, node)
    else:
        yield Assignment(source.code(target), node.value, None, node)
