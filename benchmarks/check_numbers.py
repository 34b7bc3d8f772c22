"""Do the numbers in the README and the docs agree with the result files? `--write` puts the files' numbers in.

    python benchmarks/check_numbers.py [--write]

A number that comes from a result file is followed by a comment that says where from, relative to `benchmarks/results`:

    is 13.9x<!-- search_cost.json: ratios.seconds as {:.1f}x --> faster

What stands right before the comment must be the value in that format. The value is a path or a sum, a difference, a
product or a quotient of paths and numbers, with spaces around the signs, from left to right: `100 * run.share`. In a
path `.0` takes one of a list, `[model=DiT]` the one of a list of objects that agrees, `.#` counts. A table is written
whole, one row per object of a list:

    <!-- table overhead.json: rows as Model {model} | Ratio {ratio:.3f} -->
    <!-- end of table -->
"""

from __future__ import annotations

import argparse
import json
import re
import string
import sys
from collections.abc import Callable, Iterator
from operator import add, mul, sub, truediv
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("*.md", "docs/*.md", "benchmarks/*.md", "recipes/*.md", "vit/**/*.md")
MARKER = re.compile(r"<!-- (?P<file>[\w./-]+\.json): (?P<value>[^>]+?) as (?P<format>[^>]+?) -->")
TABLE = re.compile(
    r"<!-- table (?P<file>[\w./-]+\.json): (?P<value>[^>]+?) as (?P<format>[^>]+?) -->\n"
    r"(?P<text>(?:(?!<!-- ).*\n)*)<!-- end of table -->\n"
)
NUMBER = r"[-+]?(?:\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
SIGNS: dict[str, Callable[[float, float], float]] = {"+": add, "-": sub, "*": mul, "/": truediv}


class NumberError(ValueError):
    """A marker names a file or key that is not there, or a format that does not fit."""


def look_up(values: Any, path: str) -> Any:
    """What `path` leads to inside of a result file.

    Raises:
        NumberError: There is no such key; the message names the keys there are.
    """
    for key, choice in re.findall(r"([^.\[\]]+)|\[([^\]]+)\]", path):
        try:
            values = _chosen(values, choice) if choice else _child(values, key)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            known = sorted(values)[:12] if isinstance(values, dict) else f"a {type(values).__name__}"
            raise NumberError(f"{path!r} finds no {choice or key!r}; there is {known}") from error
    return values


def evaluate(values: Any, expression: str) -> Any:
    """The value of `path`, or of `path sign path ...` from left to right; every path may be a number.

    Raises:
        NumberError: A path leads nowhere or, between signs, to something that is not a number.
    """
    first, *rest = re.split(r" ([-+*/]) ", expression)
    total = _term(values, first)
    for sign, term in zip(rest[::2], rest[1::2]):
        other = _term(values, term)
        if not all(isinstance(value, (int, float)) for value in (total, other)) or (sign == "/" and not other):
            raise NumberError(f"{expression!r}: cannot compute {total!r} {sign} {other!r}")
        total = SIGNS[sign](total, other)
    return total


def render(values: Any, expression: str, layout: str) -> str:
    """The text that must stand before a marker."""
    return _formatted(layout, [evaluate(values, expression)], {})


def render_table(values: Any, expression: str, layout: str) -> str:
    """A Markdown table of a list of objects; `layout` is `Header {key:format} | ...`, one part per column."""
    rows = evaluate(values, expression)
    columns = [part.strip().partition(" {") for part in layout.split("|")]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise NumberError(f"{expression!r} is no list of objects")
    lines = ["| " + " | ".join(header.strip() for header, _, _ in columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        lines.append("| " + " | ".join(_formatted("{" + cell, [], row) for _, _, cell in columns) + " |")
    return "\n".join(lines) + "\n"


def differences(text: str, results: Path = RESULTS) -> Iterator[str]:
    """One line for every marker and table of a page that does not agree with its file."""
    for kind in (MARKER, TABLE):
        for match in kind.finditer(text):
            try:
                wanted = _wanted(match, results)
            except NumberError as error:
                yield f"{_line(text, match)}: {match['file']}: {error}"
                continue
            before = text[: match.start()]
            if kind is TABLE and match["text"] != wanted:
                yield f"{_line(text, match)}: the table is not that of {match['file']}: {match['value']}"
            if kind is MARKER and not re.search(rf"(?<![\d.,]){re.escape(wanted)}\Z", before):
                yield f"{_line(text, match)}: {before[-len(wanted) :]!r} should be {wanted!r}, {match['file']}"
    # A comment that names a result file and is neither: a slip in the marker must not pass for agreement.
    known = {match.start() for pattern in (MARKER, TABLE) for match in pattern.finditer(text)}
    for match in re.finditer(r"<!--[^>]*\.json[^>]*-->", text):
        if match.start() not in known:
            yield f"{_line(text, match)}: {match[0]!r} is no marker, or a table without its end"


def rewritten(text: str, results: Path = RESULTS) -> str:
    """The page with the numbers and tables of the files.

    Raises:
        NumberError: A marker names something that is not there, or no number stands before it.
    """

    def table(match: re.Match[str]) -> str:
        start, end = match.start("text") - match.start(), match.end("text") - match.start()
        return match[0][:start] + _wanted(match, results) + match[0][end:]

    pieces, end = [], 0
    text = TABLE.sub(table, text)
    for match in MARKER.finditer(text):
        before, wanted = text[end : match.start()], _wanted(match, results)
        old = re.search(_pattern(match["format"]) + r"\Z", before)
        if old is None:
            raise NumberError(f"no number like {match['format']} stands before {match[0]}")
        pieces += [before[: old.start()], wanted, match[0]]
        end = match.end()
    return "".join([*pieces, text[end:]])


def pages() -> list[Path]:
    """Every page of the repository that may hold numbers."""
    return sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the numbers of the files into the pages")
    write = parser.parse_args().write
    wrong = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if write:
            page.write_text(text := rewritten(text), encoding="utf-8")
        wrong += [f"{page.relative_to(ROOT)}, {line}" for line in differences(text)]
    print("\n".join(wrong) or "every marked number agrees with its result file")
    return 1 if wrong else 0


def _wanted(match: re.Match[str], results: Path) -> str:
    """The text that belongs to a marker or a table; its own may be broken over lines."""
    value, layout = (" ".join(match[part].split()) for part in ("value", "format"))
    return (render_table if match.re is TABLE else render)(_load(results, match["file"]), value, layout)


def _line(text: str, match: re.Match[str]) -> str:
    return f"line {text.count(chr(10), 0, match.start()) + 1}"


def _load(results: Path, name: str) -> Any:
    path = results / name
    if not path.is_file():
        raise NumberError(f"{name} is not in {results.name}")
    return json.loads(path.read_text(encoding="utf-8"))


def _child(values: Any, key: str) -> Any:
    if key == "#":
        return len(values)
    return values[int(key)] if isinstance(values, list) else values[key]


def _chosen(rows: Any, choice: str) -> Any:
    wanted = dict(pair.split("=", 1) for pair in choice.split(";"))
    (row,) = [row for row in rows if all(str(row[key]) == value for key, value in wanted.items())]
    return row


def _term(values: Any, term: str) -> Any:
    return float(term) if re.fullmatch(NUMBER, term) else look_up(values, term)


def _formatted(layout: str, args: list[Any], row: dict[str, Any]) -> str:
    try:
        return layout.format(*args, **row)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise NumberError(f"{layout!r} does not fit {args or sorted(row)}: {error}") from error


def _pattern(layout: str) -> str:
    """A regular expression of what a format can have written: its words, and a number in each brace."""
    numbers = {None: "", True: NUMBER + "%", False: NUMBER}
    parts = [
        re.escape(words) + numbers[None if spec is None else spec.endswith("%")]
        for words, _, spec, _ in _parts(layout)
    ]
    return r"(?<![\d.,])" + "".join(parts)


def _parts(layout: str) -> Iterator[tuple[str, str | None, str | None, str | None]]:
    try:
        yield from string.Formatter().parse(layout)
    except ValueError as error:
        raise NumberError(f"{layout!r} is no format: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
