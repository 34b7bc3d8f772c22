"""Two gloo ranks with batches of unequal size choose the same blocks to compute again, and change no weight."""

from __future__ import annotations

from typing import Any

import pytest

from .launching import run_ranks


pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks("recomputation_script.py", tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("family", ["unet2d", "dit"])
def test_ranks_choose_alike_and_no_weight_changes(ranks: list[dict[str, Any]], family: str) -> None:
    first, second = (result[family] for result in ranks)
    assert [result["ranks"] for result in ranks] == [2, 2]
    assert first == second
    assert first["same"] == [True, True]
    assert first["equal"]
    assert [recomputed for recomputed, _ in first["free"]] == [[], []]
    recomputed, memory = first["chosen"][0]
    assert len(recomputed) > 0
    # DDP keeps every gradient a second time, in its buckets.
    assert memory["gradients"] > 1.9 * memory["weights"]
    assert first["refused"].startswith("ConfigError: memory_gb=1e-09 is too little")
