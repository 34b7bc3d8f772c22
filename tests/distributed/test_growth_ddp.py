"""Two gloo ranks on the CPU: they stay bit-identical, agree with one process, and say when they do not."""

from __future__ import annotations

from typing import Any

import pytest

from .launching import run_ranks


pytestmark = pytest.mark.distributed

ORDERS = ("interleaved", "suffix", "prefix", "freeze", "window")
CASES = [f"{family}-{order}" for family in ("unet2d", "pixart") for order in ORDERS] + ["pixart-small window"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks("growth_ddp_script.py", tmp_path_factory.mktemp("ranks"))


def test_there_are_two_ranks(ranks: list[dict[str, Any]]) -> None:
    assert [result["ranks"] for result in ranks] == [2, 2]


@pytest.mark.parametrize("case", CASES)
def test_ranks_stay_bit_identical_through_growth(ranks: list[dict[str, Any]], case: str) -> None:
    for result in ranks:
        assert result[case]["stages"] == (list(range(6)) if case.endswith("window") else [0, 0, 1, 1, 2, 2])
        assert result[case]["unequal"] == []


@pytest.mark.parametrize("case", CASES)
def test_frozen_weights_rest_on_every_rank(ranks: list[dict[str, Any]], case: str) -> None:
    for result in ranks:
        counts = result[case]["frozen"][:: -1 if case.endswith("freeze") else 1]
        if case.endswith("window"):
            assert all(counts)
            assert counts[:3] == counts[3:]
        else:
            assert counts[0] == counts[1] > counts[2] == counts[3] > counts[4] == counts[5] == 0
        assert result[case]["moved"] == []
        assert result[case]["held"] == []


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process_on_both_batches(ranks: list[dict[str, Any]], case: str) -> None:
    for result in ranks:
        assert result[case]["error"] < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_the_stage_embedding_are_averaged_before_clipping(ranks: list[dict[str, Any]], case: str) -> None:
    for result in ranks:
        assert result[case]["table_grads"] == [True] * 6
        assert any(result[case]["clipped"])


def test_a_power_function_average_is_equal_on_both_ranks(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        assert result["averaged"]["unequal"] == []
        assert result["averaged"]["steps"] == 6
        assert result["averaged"]["names"] > 1


@pytest.mark.parametrize("when", ["step", "load", "end"])
def test_a_corrupted_rank_is_reported_on_both(ranks: list[dict[str, Any]], when: str) -> None:
    for result in ranks:
        assert result["corrupted"][when].startswith("SyncError: ranks differ")
        assert "in 1 of " in result["corrupted"][when]
        assert "['conv_in.bias']" in result["corrupted"][when]


def test_a_rebuilt_reducer_keeps_its_settings_and_sends_what_trains(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        rebuilt = result["rebuilt"]
        assert rebuilt["kept"] == [[True, True, 1]] * 3
        assert rebuilt["sent"] == rebuilt["open"]
        assert rebuilt["open"][0] < rebuilt["open"][1] < rebuilt["open"][2]
        assert rebuilt["equal"] == [True] * 3


def test_a_bare_model_is_refused_where_two_processes_run(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        assert result["bare"].startswith(
            "OrderError: 2 processes run, but the model is neither in DistributedDataParallel nor"
        )
