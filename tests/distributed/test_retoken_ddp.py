"""Two gloo ranks re-tokenize: bit-identical, and as one process would."""

from __future__ import annotations

from typing import Any

import pytest

from .launching import run_ranks


pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks("retoken_script.py", tmp_path_factory.mktemp("retoken"))


@pytest.mark.parametrize("kind", ["as_vit", "hf_vit"])
def test_ranks_stay_bit_identical_and_train_what_one_process_would(ranks: list[dict[str, Any]], kind: str) -> None:
    for rank in ranks:
        assert rank[kind]["unequal"] == []
        assert rank[kind]["strides"] == [8, 8, 8, 4, 4, 4]
    assert ranks[0][kind]["error"] < 1e-3


def test_a_rank_that_drifted_is_found_at_the_next_stage(ranks: list[dict[str, Any]]) -> None:
    # A weight, and its moving average.
    assert all(rank["drifted"].startswith("SyncError: ranks differ on entering stage 1 in 2 of") for rank in ranks)
