"""FSDP2: sharded parameters grow as whole ones do, frozen shards cost nothing, the result is a plain checkpoint."""

from __future__ import annotations

from typing import Any

import pytest

from .launching import run_ranks


pytestmark = pytest.mark.distributed

Ranks = list[dict[str, Any]]  # what each rank saw
# Two of them in every run of the suite: what opens in a model that calls one block from outside, and what freezes.
CASES = ["unet2d-suffix", "dit-window"]
OTHERS = ["dit-interleaved", "dit-suffix", "dit-freeze"]
cases = pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in OTHERS)])
KINDS = ("parameters", "gradients", "optimizer")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return run_ranks("fsdp_script.py", tmp_path_factory.mktemp("fsdp"), ",".join(CASES))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Ranks:
    return run_ranks("fsdp_script.py", tmp_path_factory.mktemp("others"), ",".join(OTHERS), "alone")


@pytest.fixture
def seen(request: pytest.FixtureRequest, case: str) -> list[dict[str, Any]]:
    """What each rank saw of a case."""
    launched = request.getfixturevalue("ranks" if case in CASES else "others")
    return [result[case] for result in launched]


@cases
def test_two_ranks_equal_one_process(seen: list[dict[str, Any]]) -> None:
    """With accumulation, clipping, an EMA copied back and the fold; the gathered weights load in plain Diffusers."""
    for result in seen:
        assert result["stages"] == [0, 0, 1, 1, 2, 2]
        assert any(result["clipped"])
    assert seen[0]["error"] < 1e-4
    assert seen[0]["output error"] < 1e-4


@cases
def test_frozen_shards_rest_and_hold_nothing(seen: list[dict[str, Any]], case: str) -> None:
    for result in seen:
        counts = result["frozen"][:: -1 if case.endswith("freeze") else 1]
        if case.endswith("window"):
            assert all(counts)
        else:
            assert counts[0] == counts[1] > counts[2] == counts[3] > counts[4] == counts[5] == 0
        assert result["moved"] == []
        assert result["held"] == [[]] * 6  # in the optimizer, of what was frozen when it stepped
        assert result["grads"] == [[]] * 6  # missing where it trains, or there where it does not


@cases
def test_the_stage_embedding_is_reduced_by_the_last_pass_of_a_step(seen: list[dict[str, Any]]) -> None:
    for result in seen:
        assert result["table"] == [False, True] * 6


@cases
def test_only_gradients_of_what_trains_are_reduced(seen: list[dict[str, Any]]) -> None:
    """Once per step of two passes; every value that gloo reduces, the stage embedding's (the smallest) included."""
    for result in seen:
        for step in (0, 2, 4):
            table, *groups = result["sent"][step]
            assert sum(groups) == result["memory"][step]["reduced"]
            assert table == min(result["sent"][0])


@cases
def test_memory_of_a_rank_follows_what_trains(seen: list[dict[str, Any]], case: str) -> None:
    for step in (0, 2, 4):
        rows = [result["memory"][step] for result in seen]
        print(case, f"stage {step // 2}", [{kind: row[kind] for kind in KINDS} for row in rows], "bytes per rank")
        for row in rows:
            assert row["gradients"] == row["trains"]
            assert row["optimizer"] == 2 * row["trains"]  # Adam's two moments
            whole = step == (0 if case.endswith("freeze") else 4) and not case.endswith("window")
            assert (row["trains"] == row["parameters"]) == whole
        assert sum(row["parameters"] for row in rows) == 4 * rows[0]["numel"]  # nothing is held twice
    sizes = [seen[0]["memory"][step]["gradients"] for step in (0, 2, 4)]
    smaller, middle, larger = sizes[:: -1 if case.endswith("freeze") else 1]
    assert smaller < middle < larger or case.endswith("window")


def test_groups_that_open_late_keep_the_types_of_the_mixed_precision_policy(ranks: Ranks) -> None:
    for result in ranks:
        assert result["types"] == [["torch.float32"]] * 3


def test_a_plain_model_can_be_saved_in_the_middle(ranks: Ranks) -> None:
    for result in ranks:
        assert result["saved folded"] == {"folded": True, "restored": True}


def test_moments_of_shards_are_not_parked(ranks: Ranks) -> None:
    for result in ranks:
        said = result["refused"]["parked"]
        assert said.startswith('OrderError: window_state="park" does not work on sharded parameters')
        assert 'window_state="release"' in said


@pytest.mark.parametrize("when", ["sharded", "sharded later"])
def test_a_search_on_shards_is_refused(ranks: Ranks, when: str) -> None:
    for result in ranks:
        assert result["refused"][when].startswith("OrderError: search='zero_shot' does not work on sharded parameters")
