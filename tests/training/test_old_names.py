"""The modules of `autoprog_diffusion.finetune` are found where they moved to."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from autoprog_diffusion import finetune


def test_an_old_name_gives_the_new_module_and_names_it() -> None:
    for old in finetune._NEW:
        sys.modules.pop(f"autoprog_diffusion.finetune.{old}", None)
        with pytest.warns(FutureWarning, match=rf"finetune\.{old} is now {finetune._NEW[old]};") as caught:
            module = importlib.import_module(f"autoprog_diffusion.finetune.{old}")
        assert module is sys.modules[finetune._NEW[old]]
        assert len(caught) == 1


def test_the_warning_points_at_the_import() -> None:
    sys.modules.pop("autoprog_diffusion.finetune.loading", None)
    with pytest.warns(FutureWarning) as caught:
        from autoprog_diffusion.finetune.loading import load_as
    assert load_as.__module__ == "autoprog_diffusion.tasks.loading"
    assert caught[0].filename == __file__


@pytest.mark.parametrize("old", finetune._LEFT)
def test_an_old_name_that_left_the_package_says_where_it_is(old: str) -> None:
    assert (Path(__file__).parents[2] / finetune._LEFT[old]).is_file()
    with pytest.raises(ModuleNotFoundError, match=rf"finetune\.{old} is now {finetune._LEFT[old]}:"):
        importlib.import_module(f"autoprog_diffusion.finetune.{old}")


def test_other_names_are_unknown() -> None:
    with pytest.raises(ModuleNotFoundError, match="finetune.nothing"):
        importlib.import_module("autoprog_diffusion.finetune.nothing")
