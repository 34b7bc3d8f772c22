"""The page of model families is what the library really does with the installed Diffusers."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest

from autoprog_diffusion.families import TRAINED_IN_TESTS, denoiser_classes, table

from ..settings import DENOISERS


PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if f"Diffusers {diffusers.__version__}." not in page:
        pytest.skip(f"the page was written for another Diffusers than {diffusers.__version__}")
    written = table()
    assert page == written, "python -m autoprog_diffusion.families docs/families.md writes it"
    assert "`blocks=`" not in written.split("|---|")[1]  # no class needs its blocks named
    assert written.count("\n| ") == len(denoiser_classes()) + 1


def test_the_classes_called_tested_are_the_rows_of_the_contracts() -> None:
    assert sorted({type(family.build()).__name__ for family in DENOISERS}) == sorted(TRAINED_IN_TESTS)
    assert len(TRAINED_IN_TESTS) >= 20
