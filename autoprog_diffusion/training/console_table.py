"""Tables in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Column, Table


def print_table(title: str, rows: Sequence[Mapping[str, str]], caption: str | None = None) -> None:
    """Print rows of cells by the titles of their columns."""
    columns = [Column(name, justify="right") for name in rows[0]]
    table = Table(*columns, title=title, caption=caption)
    for row in rows:
        table.add_row(*row.values())
    Console(width=None if sys.stdout.isatty() else 110).print(table)
