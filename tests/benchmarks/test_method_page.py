"""docs/method.md names modules and functions that exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest


PAGE = Path(__file__).resolve().parents[2] / "docs" / "method.md"
NAMES = sorted(set(re.findall(r"`((?:growth|search|adapters|vit)\.[a-z_.]+)`", PAGE.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_table_exists(name: str) -> None:
    parent, _, last = f"autoprog_diffusion.{name}".rpartition(".")
    module = importlib.import_module(parent)
    if not hasattr(module, last):
        importlib.import_module(f"{parent}.{last}")
