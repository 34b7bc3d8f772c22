"""docs/card.md names modules and functions that exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path


PAGE = Path(__file__).resolve().parents[2] / "docs" / "card.md"
NAMES = sorted(set(re.findall(r"`((?:growth|search|adapters|vit)\.[a-z_.]+)`", PAGE.read_text(encoding="utf-8"))))


def test_a_name_of_the_table_exists() -> None:
    for name in NAMES:
        parent, _, last = f"autoprog_diffusion.{name}".rpartition(".")
        module = importlib.import_module(parent)
        if not hasattr(module, last):
            importlib.import_module(f"{parent}.{last}")
