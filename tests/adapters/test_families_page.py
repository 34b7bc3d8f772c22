"""The page of model families is what the library really does with the installed Diffusers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import diffusers
import pytest

from ..settings import DENOISERS


DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "families.md"
_spec = importlib.util.spec_from_file_location("make_families", DOCS / "make_families.py")
make_families = importlib.util.module_from_spec(_spec)
sys.modules["make_families"] = make_families  # its dataclasses look their module up
_spec.loader.exec_module(make_families)


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if f"Diffusers {diffusers.__version__}." not in page:
        pytest.skip(f"the page was written for another Diffusers than {diffusers.__version__}")
    written = make_families.table()
    assert page == written, "python docs/make_families.py docs/families.md writes it"
    assert "`blocks=`" not in written.split("|---|")[1]  # no class needs its blocks named
    assert written.count("\n| ") == len(make_families.denoiser_classes()) + 1


def test_the_classes_called_tested_are_the_rows_of_the_contracts() -> None:
    assert sorted({type(family.build()).__name__ for family in DENOISERS}) == sorted(make_families.TRAINED_IN_TESTS)
    assert len(make_families.TRAINED_IN_TESTS) >= 20
