"""A parsed script: its syntax tree with lines and parents, and the few questions that the analysis asks of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn, TypeAlias

import libcst as cst
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider

from .errors import PatchError


# What has a scope of its own.
Scope: TypeAlias = cst.Module | cst.FunctionDef
INNER_SCOPES = (cst.FunctionDef, cst.ClassDef, cst.Lambda)
SPACE = (cst.BaseParenthesizableWhitespace, cst.TrailingWhitespace, cst.EmptyLine, cst.Comment, cst.Newline)
BOM = b"\xef\xbb\xbf"


class Source:
    """A script as libcst reads it; nodes are known by identity.

    Args:
        path: For messages.
        data: Content of the file.
        module: What libcst made of it.
    """

    def __init__(self, path: Path, data: bytes, module: cst.Module) -> None:
        self.path = path
        self.data = data
        wrapper = MetadataWrapper(module, unsafe_skip_copy=True)
        self.module = wrapper.module
        self._positions = wrapper.resolve(PositionProvider)
        self._parents = wrapper.resolve(ParentNodeProvider)
        # libcst finds the children of a node by visiting them, which is slow.
        self._children: dict[cst.CSTNode, list[cst.CSTNode]] = {}
        self._names: dict[cst.CSTNode, set[str]] = {}
        for node, above in self._parents.items():
            if not isinstance(node, SPACE):
                self._children.setdefault(above, []).append(node)

    def line(self, node: cst.CSTNode) -> int:
        """Line on which a node begins, from 1."""
        return self._positions[node].start.line

    def place(self, node: cst.CSTNode) -> tuple[int, int]:
        """Line and column at which a node begins, to compare two nodes by."""
        start = self._positions[node].start
        return (start.line, start.column)

    def end(self, node: cst.CSTNode) -> int:
        """Line on which a node ends, from 1."""
        return self._positions[node].end.line

    def parent(self, node: cst.CSTNode) -> cst.CSTNode | None:
        """The node that holds a node; None for the module."""
        return self._parents.get(node)

    def ancestors(self, node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        """The nodes that hold a node, from the nearest to the module."""
        above = self.parent(node)
        while above is not None:
            yield above
            above = self.parent(above)

    def scope(self, node: cst.CSTNode) -> Scope:
        """The function that a node stands in, or the module."""
        return next(above for above in self.ancestors(node) if isinstance(above, cst.Module | cst.FunctionDef))

    def statement(self, node: cst.CSTNode, block: cst.CSTNode) -> cst.BaseStatement | None:
        """The statement of a block, itself and not one inside of it, that a node is part of; None if of none."""
        path = [node, *self.ancestors(node)]
        for inner, outer in zip(path, path[1:]):
            if outer is block and isinstance(inner, cst.BaseStatement):
                return inner
        return None

    def children(self, node: cst.CSTNode) -> list[cst.CSTNode]:
        """The nodes directly below a node, in the order of the text, without white space and comments."""
        return self._children.get(node, [])

    def walk(self, node: cst.CSTNode, *, inner: bool = True) -> Iterator[cst.CSTNode]:
        """A node and all below it, in the order of the text; without `inner`, not what functions inside of it hold."""
        waiting = [node]
        while waiting:
            found = waiting.pop()
            yield found
            below = self.children(found)
            waiting += [one for one in reversed(below) if inner or not isinstance(one, INNER_SCOPES)]

    def calls(self, node: cst.CSTNode, *, inner: bool = False) -> Iterator[cst.Call]:
        """All calls below a node; without `inner`, not those of functions that are defined there."""
        return (found for found in self.walk(node, inner=inner) if isinstance(found, cst.Call))

    def names(self, node: cst.CSTNode) -> set[str]:
        """The variables that an expression reads: no attributes, no keywords."""
        if node in self._names:
            return self._names[node]
        if isinstance(node, cst.Name):
            found = {node.value}
        elif isinstance(node, cst.Attribute | cst.Arg):
            found = self.names(node.value)
        else:
            found = set().union(*(self.names(child) for child in self.children(node)))
        self._names[node] = found
        return found

    def code(self, node: cst.CSTNode) -> str:
        """A node as it is written."""
        return self.module.code_for_node(node).strip()

    def refuse(self, node: cst.CSTNode | None, reason: str) -> NoReturn:
        """Refuse the script, because of a node or as a whole.

        Raises:
            PatchError: Always.
        """
        self.refuse_line(None if node is None else self.line(node), reason)

    def refuse_line(self, line: int | None, reason: str) -> NoReturn:
        """Refuse the script, because of a line from 1, or as a whole.

        Raises:
            PatchError: Always.
        """
        raise PatchError(self.path, line, reason)

    def name_used(self, names: Iterable[str]) -> cst.Name | None:
        """The first place where the script uses one of `names` as a variable: no attributes, no keywords."""
        for node in self.walk(self.module):
            if isinstance(node, cst.Name) and node.value in names:
                above = self.parent(node)
                is_attribute = isinstance(above, cst.Attribute) and above.attr is node
                is_keyword = isinstance(above, cst.Arg) and above.keyword is node
                if not is_attribute and not is_keyword:
                    return node
        return None


def read_source(path: Path) -> Source:
    """Read and parse a script.

    Raises:
        PatchError: There is no such file, it is no Python that libcst can read, or libcst would not write it back as
            it was.
    """
    if path.is_dir():
        raise PatchError(path, None, "this is a folder: name one training script.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PatchError(path, None, f"it cannot be read ({error.strerror}).") from error
    if data.startswith(BOM):
        raise PatchError(path, 1, "it begins with a byte order mark: save it as UTF-8 without one.")
    try:
        module = cst.parse_module(data)
    except cst.ParserSyntaxError as error:
        raise PatchError(path, error.raw_line, f"it is no Python: {first_line(error.message)}") from error
    except (UnicodeDecodeError, LookupError, SyntaxError) as error:
        raise PatchError(
            path, None, f"its encoding cannot be read ({error}): save it as UTF-8, or name the encoding in line 1."
        ) from error
    if module.bytes != data:
        raise PatchError(path, None, "libcst would not write it back byte for byte: it would change other lines too.")
    return Source(path, data, module)


def first_line(text: str) -> str:
    """The first line of a message, without the list of all that could have been there instead."""
    return text.strip().partition("\n")[0].partition(": expected")[0]


def dotted(node: cst.CSTNode) -> str | None:
    """`a.b.c` of names with dots between them, or None."""
    if isinstance(node, cst.Name):
        return node.value
    if isinstance(node, cst.Attribute):
        front = dotted(node.value)
        return None if front is None else f"{front}.{node.attr.value}"
    return None


def called(call: cst.Call) -> str:
    """Last name of what is called: `step` of `accelerator.unwrap_model(x).step()`; empty if it has none."""
    if isinstance(call.func, cst.Attribute):
        return call.func.attr.value
    if isinstance(call.func, cst.Name):
        return call.func.value
    return ""


def owner(call: cst.Call) -> str:
    """What a method is called on, with dots; empty for a function, and for what has no such name."""
    return (dotted(call.func.value) or "") if isinstance(call.func, cst.Attribute) else ""
