"""Two real processes over gloo: one decision for all ranks; a failure anywhere is raised everywhere."""

from __future__ import annotations

import pytest

from .launching import run_ranks


pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return run_ranks("search_ddp_script.py", tmp_path_factory.mktemp("search"))


@pytest.mark.parametrize("cost", ["flops", "measured"])
def test_ranks_with_different_data_choose_the_same_plan(ranks: list[dict], cost: str) -> None:
    first, second = (rank[cost] for rank in ranks)
    assert first["error"] == second["error"] == ""
    assert first["plan"] == second["plan"]
    assert first["weights"] == second["weights"]
    for ours, theirs in zip(first["decisions"], second["decisions"], strict=True):
        assert ours["candidates"] == theirs["candidates"]
        assert ours["choice"] == theirs["choice"]


def test_a_failure_on_one_rank_is_raised_on_both(ranks: list[dict]) -> None:
    for rank in ranks:
        assert "failed on rank 1: TypeError" in rank["failing"]["error"]


def test_ranks_pool_their_calls_and_agree_on_the_noise_scale(ranks: list[dict]) -> None:
    first, second = (rank["noise"] for rank in ranks)
    assert first["found"] == second["found"]
    assert first["calls"] == 6
    assert first["units"] > 3
    for name, value in first["literal"].items():
        assert first["found"][name] == pytest.approx(value, rel=1e-4)
