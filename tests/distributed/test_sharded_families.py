"""The classes that recipes shard one by one, where the configuration names none: every family computes as before."""

from __future__ import annotations

from typing import Any

import pytest

from ..settings import DENOISERS
from .launching import run_ranks


pytestmark = [pytest.mark.distributed, pytest.mark.slow]
FAMILIES = [family.id for family in DENOISERS]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks("sharded_families_script.py", tmp_path_factory.mktemp("families"), ",".join(FAMILIES))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_cut_by_its_blocks_computes_the_same(ranks: list[dict[str, Any]], name: str) -> None:
    for result in ranks:
        seen = result[name]
        assert "error" not in seen, seen["error"]
        assert seen["classes"], "no block is cut by itself"
        assert seen["loss"][0] == pytest.approx(seen["loss"][1], rel=1e-5)
        assert seen["gradient"] < 1e-4
