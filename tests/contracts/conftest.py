"""Says at the end over how many model classes the contracts ran."""

from __future__ import annotations

from typing import Any

import pytest


FAMILY_OF: dict[str, Any] = {}


def pytest_collection_modifyitems(items: list[Any]) -> None:
    FAMILY_OF.update(
        (item.nodeid, item.callspec.params["family"])
        for item in items
        if "family" in getattr(getattr(item, "callspec", None), "params", {})
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed = [report.nodeid for report in terminalreporter.stats.get("passed", []) if "contracts" in report.nodeid]
    families = {FAMILY_OF[name].id: FAMILY_OF[name] for name in passed if name in FAMILY_OF}
    classes = {type(family.build()).__name__ for family in families.values()}
    if classes:
        terminalreporter.write_line(f"contracts: {len(classes)} model classes in {len(families)} configurations")
