"""The package and vit/ are written for readers: short files and functions, one thing a line."""

from __future__ import annotations

import ast

import pytest

from .density import ROOT, Density, is_tuple_assignment, measure, measure_tree, sources


MAX_NODES_PER_LINE = 7.0
MAX_TUPLE_ASSIGNMENTS = 1  # per 1,000 code lines
# In total. 17,004 before the packed code was unpacked and its docstrings completed, 18,411 after it; the rest is room
# for what is added on purpose: a new capability raises the limit in the commit that adds it.
MAX_LINES = 50_000
MAX_FILE = 350
MAX_FUNCTION = 50
STARTS_WITH_WHAT = 0  # module docstrings whose first word is "What"


@pytest.fixture(scope="module")
def today() -> Density:
    return measure_tree()


def test_a_line_holds_one_thing(today: Density) -> None:
    assert today.nodes_per_line < MAX_NODES_PER_LINE
    assert today.per_thousand(today.tuple_assignments) <= MAX_TUPLE_ASSIGNMENTS


def test_the_whole_grows_on_purpose_only(today: Density) -> None:
    assert today.lines <= MAX_LINES


def test_every_file_is_short_and_ascii() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in sources()}
    assert not [path for path, text in texts.items() if not text.isascii()]
    assert not [path for path, text in texts.items() if len(text.splitlines()) > MAX_FILE]


def test_every_function_is_short() -> None:
    long: list[str] = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if function and node.end_lineno - node.lineno >= MAX_FUNCTION:
                long.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert not long


def test_a_module_says_what_it_is_without_beginning_with_what() -> None:
    docstrings = {path: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in sources()}
    assert len([path for path, text in docstrings.items() if text.startswith("What")]) <= STARTS_WITH_WHAT


def test_the_measure_counts_what_it_names() -> None:
    text = '"""One."""\n\n# a comment\na, b = 1, 2  # another\nc, d = a if b else (b, a)\n'
    found = measure([text])
    assert (found.lines, found.code_lines, found.comments) == (5, 3, 2)
    assert (found.tuple_assignments, found.inline_ifs) == (1, 1)
    assert found.nodes == sum(1 for _ in ast.walk(ast.parse(text)))


@pytest.mark.parametrize(("text", "packed"), [("a, b = 1, 2", True), ("a, b = pair", False), ("a = 1, 2", False)])
def test_a_tuple_assignment_is_two_statements_in_one(text: str, packed: bool) -> None:
    assert is_tuple_assignment(ast.parse(text).body[0]) is packed
