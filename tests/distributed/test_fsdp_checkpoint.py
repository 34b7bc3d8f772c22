"""A sharded run stops and goes on bit for bit, by torch's distributed checkpoints and by Accelerate's FSDP plugin."""

from __future__ import annotations

from typing import Any

import pytest

from .launching import run_ranks


pytestmark = pytest.mark.distributed

# Directions, and where they stop: at a boundary of stages, or inside a stage.
CASES = ["unfreeze-boundary", "unfreeze-inside", "freeze-boundary", "window-inside"]
OTHERS = ["freeze-inside", "window-boundary"]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks("fsdp_checkpoint_script.py", tmp_path_factory.mktemp("fsdp_checkpoint"), ",".join(CASES))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks("fsdp_checkpoint_script.py", tmp_path_factory.mktemp("others"), ",".join(OTHERS), "alone")


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in OTHERS)])
def test_a_torch_checkpoint_continues_bit_for_bit(request: pytest.FixtureRequest, case: str) -> None:
    """Weights, stage embedding and moments; at a boundary, what has just opened or frozen has no moments."""
    direction, stop = case.split("-")
    for result in request.getfixturevalue("ranks" if case in CASES else "others"):
        seen = result["torch"][direction][stop]
        assert seen["loaded"]
        assert seen["finished"]
        assert seen["stage"] == [1, 1]
        assert seen["open"][0] == seen["open"][1]


def test_moments_that_torch_left_out_are_an_error(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        said = result["torch"]["unfreeze"]["careless"]
        assert said.startswith("StateError: the optimizer's state of 2 blocks was not loaded")
        assert "growth.loading(state)" in said


def test_accelerates_plugin_trains_as_one_process_does(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        assert result["accelerate"]["error"] < 1e-4
        assert not result["accelerate"]["embedding"]  # left open by the configuration: then there is none
    assert ranks[0]["accelerate"]["gathered"] < 1e-4


@pytest.mark.parametrize("stop", ["SHARDED boundary", "SHARDED inside", "FULL inside"])
def test_accelerates_checkpoints_continue_bit_for_bit(ranks: list[dict[str, Any]], stop: str) -> None:
    for result in ranks:
        assert result["accelerate"][stop] == {"loaded": True, "finished": True}


def test_new_blocks_warm_up_although_their_parameters_were_replaced(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        warm, cold = result["rewarmed"]
        assert warm < 1e-4
        assert cold > 1e-3


@pytest.mark.parametrize("what", ["search", "stage_embedding", "stage_dropout", "activation_checkpointing"])
def test_what_accelerates_plugin_cannot_do_is_refused_at_construction(ranks: list[dict[str, Any]], what: str) -> None:
    for result in ranks:
        assert result["refused"][what].startswith("OrderError")
        assert what in result["refused"][what]
