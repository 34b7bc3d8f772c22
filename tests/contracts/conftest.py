"""Says at the end over how many model classes the contracts ran."""

from __future__ import annotations

from typing import Any

from ..settings import BY_ID


def pytest_terminal_summary(terminalreporter: Any) -> None:
    names = [
        report.nodeid for report in terminalreporter.stats.get("passed", []) if "tests/contracts/" in report.nodeid
    ]
    rows = {name for name in BY_ID if any(f"[{name}]" in node or f"[{name}-" in node for node in names)}
    classes = {type(BY_ID[name].build()).__name__ for name in rows}
    if classes:
        terminalreporter.write_line(f"contracts: {len(classes)} model classes in {len(rows)} configurations")
