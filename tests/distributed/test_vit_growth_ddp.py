"""Two gloo ranks grow a vision transformer: bit-identical, as one process would, one schedule for both."""

from __future__ import annotations

from typing import Any

import pytest

from .launching import run_ranks


pytestmark = pytest.mark.distributed

SEARCHED = ("one_shot-momentum", "one_shot-measured")
CASES = (*SEARCHED, "zero_shot-stacking", "fixed-random", "fixed-interpolation")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks("vit_growth_script.py", tmp_path_factory.mktemp("vit_growth"))


@pytest.mark.parametrize("case", CASES)
def test_ranks_stay_bit_identical_and_choose_alike(ranks: list[dict[str, Any]], case: str) -> None:
    first, second = (rank[case] for rank in ranks)
    assert first["unequal"] == second["unequal"] == []
    for key in ("shapes", "plan", "choices"):
        assert first[key] == second[key]
    assert not any(first["moved"])


@pytest.mark.parametrize("case", ["one_shot-momentum", "fixed-random", "fixed-interpolation"])
def test_two_ranks_train_what_one_process_would(ranks: list[dict[str, Any]], case: str) -> None:
    seen = ranks[0][case]
    assert seen["plan"] == seen["expected"]
    assert seen["error"] < 1e-3


@pytest.mark.parametrize("case", CASES)
def test_only_a_supernet_looks_for_unused_parameters(ranks: list[dict[str, Any]], case: str) -> None:
    for rank in ranks:
        assert rank[case]["find_unused"] == rank[case]["searching"]
        assert any(rank[case]["searching"]) == (case in SEARCHED)


def test_resuming_in_the_middle_of_a_search_is_bit_exact(ranks: list[dict[str, Any]]) -> None:
    assert [rank["resumed"] for rank in ranks] == [True, True]


def test_what_goes_wrong_on_one_rank_is_said_on_both(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        said = rank["failures"]
        assert said["broken"].startswith(
            "SearchError: the schedule search failed on rank 1: RuntimeError: out of luck"
        )
        assert said["drifted"].startswith("SyncError: ranks differ on entering stage 1 in 2 of")
        assert "static_graph=False" in said["static"]
