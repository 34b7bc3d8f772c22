"""Measure how densely the package and vit/ are written: `python tests/density.py [REVISION]`.

The table has one column for the working tree and one for a revision of the repository, by default the one before the
packed code was unpacked.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tarfile
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("autoprog_diffusion", "vit")
BEFORE = "eabb9bf"


@dataclass(frozen=True)
class Density:
    """Counts over a set of files; a code line is one that is neither blank nor a comment (docstrings count)."""

    files: int = 0
    lines: int = 0
    code_lines: int = 0
    longest_file: int = 0
    nodes: int = 0
    tuple_assignments: int = 0
    inline_ifs: int = 0
    comments: int = 0

    @property
    def nodes_per_line(self) -> float:
        """AST nodes per code line."""
        return self.nodes / self.code_lines

    @property
    def comment_percent(self) -> float:
        """Comments, on lines of their own or behind code, per 100 code lines."""
        return 100 * self.comments / self.code_lines

    def per_thousand(self, count: int) -> float:
        """Scale a count to 1,000 code lines."""
        return 1000 * count / self.code_lines


def measure(texts: Iterable[str]) -> Density:
    """Measure the sources of some files together."""
    files = lines = code_lines = longest_file = nodes = tuple_assignments = inline_ifs = comments = 0
    for text in texts:
        rows = text.splitlines()
        files += 1
        lines += len(rows)
        longest_file = max(longest_file, len(rows))
        code_lines += sum(1 for row in rows if row.strip() and not row.strip().startswith("#"))
        for node in ast.walk(ast.parse(text)):
            nodes += 1
            tuple_assignments += is_tuple_assignment(node)
            inline_ifs += isinstance(node, ast.IfExp)
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments += sum(1 for token in tokens if token.type == tokenize.COMMENT)
    return Density(files, lines, code_lines, longest_file, nodes, tuple_assignments, inline_ifs, comments)


def is_tuple_assignment(node: ast.AST) -> bool:
    """Tell `a, b = x, y`, two statements in one line, from `a, b = pair` and from any other node."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    return any(isinstance(target, ast.Tuple) for target in node.targets)


def sources() -> list[Path]:
    """Files of the package and of vit/ in the working tree."""
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def measure_tree() -> Density:
    """Measure the working tree."""
    return measure(path.read_text(encoding="utf-8") for path in sources())


def measure_revision(revision: str) -> Density:
    """Measure the same folders at a revision, without checking it out."""
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", revision, *FOLDERS]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = [tar.extractfile(member) for member in tar.getmembers() if member.name.endswith(".py")]
        return measure(member.read().decode("utf-8") for member in members if member is not None)


def table(before: Density, today: Density, revision: str) -> str:
    """Both measurements as rows of text."""
    rows = [
        ("", revision, "today"),
        ("files", f"{before.files:,}", f"{today.files:,}"),
        ("lines in total", f"{before.lines:,}", f"{today.lines:,}"),
        ("lines of the longest file", f"{before.longest_file:,}", f"{today.longest_file:,}"),
        ("AST nodes", f"{before.nodes:,}", f"{today.nodes:,}"),
        ("AST nodes per code line", f"{before.nodes_per_line:.2f}", f"{today.nodes_per_line:.2f}"),
    ]
    for label, field in (("tuple assignments", "tuple_assignments"), ("inline ifs", "inline_ifs")):
        values = [f"{side.per_thousand(getattr(side, field)):.1f}" for side in (before, today)]
        rows.append((f"{label} per 1,000 code lines", *values))
    rows.append(("comments per 100 code lines", f"{before.comment_percent:.1f}", f"{today.comment_percent:.1f}"))
    return "\n".join(f"{label:38s}{left:>12s}{right:>12s}" for label, left, right in rows)


if __name__ == "__main__":
    asked = sys.argv[1] if len(sys.argv) > 1 else BEFORE
    print(table(measure_revision(asked), measure_tree(), asked))
