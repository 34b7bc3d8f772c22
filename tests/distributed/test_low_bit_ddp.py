"""Two gloo ranks with low-bit optimizer state and stochastic rounding stay equal, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from .launching import run_ranks


pytestmark = pytest.mark.distributed


def test_ranks_round_alike_whatever_their_generators_draw(tmp_path: Path) -> None:
    ranks = run_ranks("low_bit_script.py", tmp_path)
    assert [result["ranks"] for result in ranks] == [2, 2]
    for result in ranks:
        assert len(result["cases"]) == 5
        for case, seen in result["cases"].items():
            assert seen["unequal"] == [], case
            assert seen["moved"] > 20, case
            assert "OrderError: step_in_backward works in one process, and 2 run" in seen["refused"]
        assert "OrderError: step_in_backward does not work on sharded parameters" in result["sharded"]
        assert result["sharded"].count("OrderError: offload_optimizer does not work on sharded parameters") == 2
