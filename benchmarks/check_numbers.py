"""Do the numbers in the README and the docs agree with the result files? `--write` puts the files' numbers in.

    python benchmarks/check_numbers.py [--write]

A number that comes from a result file is a Markdown reference link. Its definition stands at the foot of the page and
says where the number comes from, and how:

    It used [17 %][run-flops] fewer FLOPs.

    [run-flops]: benchmarks/default_run/summary.json "saved_percent.flops as {:.0f} %"

The file's path is relative to the page. The value is a path or a sum, a difference, a product or a quotient of paths
and numbers, with spaces around the signs, from left to right: `100 * run.share`. In a path `.0` takes one of a list,
`[model=DiT]` the one of a list of objects that agrees, `[model=DiT|UNet]` a list of those, and `.#` counts. A `.jsonl`
file is a list of its lines. A table is written whole, one row per object of a list (or of an object of objects, whose
names are `{key}`):

    <!-- table overhead/summary.json: rows as Model {model} | Ratio {ratio:.3f} -->
    <!-- end of table -->

Refused: a link whose text is not the value, a definition that is missing or that no text uses, and a numeral followed
by x or % that is no link. A value quoted from a paper links to the paper, and a setting is written as `code`. Tables
and code are not searched. README.md has at most five numbers.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from operator import add, mul, sub, truediv
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
PAGES = ("*.md", "docs/*.md", "benchmarks/*.md", "benchmarks/*/*.md", "recipes/*.md", "vit/**/*.md")
LIMITS = {"README.md": 5}  # numbers in the text of a page

DEFINITION = re.compile(r'^\[(?P<label>[^\]\n]+)\]: (?P<file>\S+\.jsonl?)(?: "(?P<title>[^"\n]*)")?[ \t]*$', re.M)
LINK = re.compile(r"\[(?P<text>[^\[\]]+)\]\[(?P<label>[^\[\]\n]+)\]")
TABLE = re.compile(
    r"<!-- table (?P<file>[\w./-]+\.jsonl?): (?P<value>[^>]+?) as (?P<format>[^>]+?) -->\n"
    r"(?P<text>(?:(?!<!-- ).*\n)*)<!-- end of table -->\n"
)
# Not prose: fenced code, code in a line, comments, tables and headings; an address in a link; a link to elsewhere.
HIDDEN = re.compile(r"^```.*?^```|`[^`\n]*`|<!--.*?-->|^\|.*$|^#.*$|!?\[[^\[\]]*\]\([^)\s]*\)", re.M | re.S)
COMMENT = re.compile(r"<!--.*?-->", re.S)
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.M | re.S)
BARE = re.compile(r"\d[\d.,]*\s?(?:x|%)(?!\w)")
NUMBER = r"[-+]?(?:\d[\d,]*\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
SIGNS: dict[str, Callable[[float, float], float]] = {"+": add, "-": sub, "*": mul, "/": truediv}


class NumberError(ValueError):
    """A definition names a file or key that is not there, or a format that does not fit."""


def look_up(values: Any, path: str) -> Any:
    """The value at `path` in a result file.

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


def render(values: Any, title: str) -> str:
    """The text of a link whose definition has this title, `value as format`."""
    expression, found, layout = title.rpartition(" as ")
    if not found or "{" not in layout:
        raise NumberError(f"{title!r} is not of the form 'value as {{format}}'")
    return _formatted(layout, [evaluate(values, expression)], {})


def render_table(values: Any, expression: str, layout: str) -> str:
    """A Markdown table of a list of objects; `layout` is `Header {key:format} | ...`, one part per column."""
    rows = evaluate(values, expression)
    if isinstance(rows, dict) and all(isinstance(row, dict) for row in rows.values()):
        rows = [{"key": key, **row} for key, row in rows.items()]
    columns = [part.strip().partition(" {") for part in layout.split("|")]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise NumberError(f"{expression!r} is no list of objects")
    lines = ["| " + " | ".join(header.strip() for header, _, _ in columns) + " |", "|---" * len(columns) + "|"]
    for row in rows:
        lines.append("| " + " | ".join(_formatted("{" + cell, [], row) for _, _, cell in columns) + " |")
    return "\n".join(lines) + "\n"


class Page:
    """The numbers of one page.

    Args:
        text: Its Markdown.
        folder: Where it lies; result files are relative to it.
        limit: How many numbers its text may have; None for any number.
    """

    def __init__(self, text: str, folder: Path, limit: int | None = None) -> None:
        self.text = text
        self.limit = limit
        self._folder = folder
        self._plain = _blanked(CODE, text)
        self.definitions = list(DEFINITION.finditer(self._plain))
        self._titles = {match["label"].lower(): match for match in self.definitions}

    def differences(self) -> Iterator[str]:
        """One line for every number, table and definition that is not as it should be."""
        links = list(self._links())
        for match in links:
            wanted = self._value(match)
            if isinstance(wanted, NumberError):
                yield f"{self._line(match)}: [{match['label']}]: {wanted}"
            elif " ".join(match["text"].split()) != wanted:
                yield f"{self._line(match)}: {match['text']!r} should be {wanted!r}, [{match['label']}]"
        used = [match["label"].lower() for match in links]
        if self.limit is not None and len(used) > self.limit:
            yield f"line 1: {len(used)} numbers in the text, at most {self.limit} are allowed: make a table of them"
        yield from self._wrong_definitions(set(used))
        yield from self._wrong_tables()
        for match in BARE.finditer(_blanked(HIDDEN, _blanked(LINK, _blanked(DEFINITION, self._plain)))):
            yield f"{self._line(match)}: {match[0]!r} is no link to a result file: add one, or write it as code"

    def rewritten(self) -> str:
        """The page with the numbers and tables of the files.

        Raises:
            NumberError: A definition or a table names something that is not there.
        """
        changes = []
        for match in self._links():
            wanted = self._value(match)
            if isinstance(wanted, NumberError):
                raise wanted
            if wanted != " ".join(match["text"].split()):  # else it may be broken over lines
                changes.append((*match.span("text"), wanted))
        changes += [(*match.span("text"), self._table(match)) for match in TABLE.finditer(self._plain)]
        text = self.text
        for start, end, wanted in sorted(changes, reverse=True):
            text = text[:start] + wanted + text[end:]
        return text

    def _links(self) -> Iterator[re.Match[str]]:
        """Reference links to a number, and those without a definition of any kind."""
        others = {label.lower() for label in re.findall(r"^\[([^\]\n]+)\]: ", self._plain, re.M)} - set(self._titles)
        text = _blanked(COMMENT, self._plain)
        return (match for match in LINK.finditer(text) if match["label"].lower() not in others)

    def _wrong_definitions(self, used: set[str]) -> Iterator[str]:
        seen: set[str] = set()
        for match in self.definitions:
            label = match["label"].lower()
            if label not in used:
                yield f"{self._line(match)}: [{match['label']}] is defined and not used"
            if label in seen:
                yield f"{self._line(match)}: [{match['label']}] is defined twice"
            seen.add(label)

    def _wrong_tables(self) -> Iterator[str]:
        tables = list(TABLE.finditer(self._plain))
        for match in tables:
            try:
                if match["text"] != self._table(match):
                    yield f"{self._line(match)}: the table is not that of {match['file']}: {match['value']}"
            except NumberError as error:
                yield f"{self._line(match)}: {match['file']}: {error}"
        # A comment that names a result file and is no table: a slip must not pass for agreement.
        known = {match.start() for match in tables}
        for match in re.finditer(r"<!--[^>]*\.json[^>]*-->", self._plain):
            if match.start() not in known:
                yield f"{self._line(match)}: {match[0]!r} is no table with an end"

    def _value(self, link: re.Match[str]) -> str | NumberError:
        definition = self._titles.get(link["label"].lower())
        try:
            if definition is None:
                raise NumberError("there is no definition of this label")
            return render(self._load(definition["file"]), definition["title"] or "")
        except NumberError as error:
            return error

    def _table(self, match: re.Match[str]) -> str:
        return render_table(self._load(match["file"]), match["value"], match["format"])

    def _load(self, name: str) -> Any:
        path = self._folder / name
        if not path.is_file():
            raise NumberError(f"{name} is not in {self._folder.name}")
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)

    def _line(self, match: re.Match[str]) -> str:
        return f"line {self.text.count(chr(10), 0, match.start()) + 1}"


def pages() -> list[Path]:
    """Every page of the repository that may hold numbers."""
    return sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})


def read(path: Path) -> Page:
    """A page of the repository."""
    limit = LIMITS.get(str(path.relative_to(ROOT)))
    return Page(path.read_text(encoding="utf-8"), path.parent, limit)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the numbers of the files into the pages")
    write = parser.parse_args().write
    wrong = []
    for path in pages():
        if write:
            try:
                path.write_text(read(path).rewritten(), encoding="utf-8")
            except NumberError:
                pass  # named by what follows
        wrong += [f"{path.relative_to(ROOT)}, {line}" for line in read(path).differences()]
    print("\n".join(wrong) or "every number agrees with its result file")
    return 1 if wrong else 0


def _blanked(pattern: re.Pattern[str], text: str) -> str:
    """The text with spaces for every match: offsets and line numbers stay."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def _child(values: Any, key: str) -> Any:
    if key == "#":
        return len(values)
    return values[int(key)] if isinstance(values, list) else values[key]


def _chosen(rows: Any, choice: str) -> Any:
    if "|" in choice:
        key, _, values = choice.partition("=")
        return [_chosen(rows, f"{key}={value}") for value in values.split("|")]
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


if __name__ == "__main__":
    sys.exit(main())
