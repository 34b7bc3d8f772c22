"""Power-function averages under FSDP2: of shards, without communication, and the same as those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from autoprog_diffusion import StateError
from autoprog_diffusion.growth.averaged_weights import AveragedWeights
from autoprog_diffusion.growth.power_snapshots import read_state, reader

from ..settings import BY_ID
from .launching import run_ranks


pytestmark = pytest.mark.distributed

FAMILY = BY_ID["pixart"]
slow = pytest.mark.slow
directions = pytest.mark.parametrize(
    "direction", ["freeze", pytest.param("unfreeze", marks=slow), pytest.param("window", marks=slow)]
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded_average")


@pytest.fixture(scope="module")
def ranks(root: Path) -> list[dict[str, Any]]:
    return run_ranks("sharded_average_script.py", root, "freeze")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks("sharded_average_script.py", tmp_path_factory.mktemp("others"), "unfreeze", "window")


@pytest.fixture
def loops(request: pytest.FixtureRequest, direction: str) -> list[dict[str, Any]]:
    """What each rank saw of the loop of a direction."""
    seen = request.getfixturevalue("ranks" if direction == "freeze" else "others")
    return [result[direction] for result in seen]


@directions
def test_two_ranks_have_the_averages_of_one_process(loops: list[dict[str, Any]], direction: str) -> None:
    """All widths, with blocks that freeze at their averages, and the folded model that is saved."""
    for result in loops:
        assert max(result["errors"]) < 1e-4
        assert result["saved"] < 1e-4
        assert result["sent"] == [0] * 6
        held, whole, dtype = result["held"]
        assert 2 * held == whole
        assert dtype == ("torch.float64" if direction == "window" else "torch.float32")


@directions
def test_what_is_evaluated_is_what_is_saved_and_leaves_no_trace(loops: list[dict[str, Any]]) -> None:
    for result in loops:
        assert result["trace"] == {"inside": True, "after": True}
        before, after = result["evaluated"]
        assert before == after
    assert loops[0]["evaluated"] == loops[1]["evaluated"]


@directions
def test_snapshots_are_whole_and_give_other_widths(loops: list[dict[str, Any]]) -> None:
    for result in loops:
        snapshot = result["snapshot"]
        assert snapshot["error"] < 1e-4
        assert snapshot["restored"]
        assert snapshot["reconstructed"] < 1e-4
        assert snapshot["widths"] == [0.25, 0.2, 0.28]


def test_a_sharded_run_goes_on_bit_for_bit(ranks: list[dict[str, Any]]) -> None:
    """At a boundary; its checkpoint gives other widths as a snapshot does."""
    for result in ranks:
        assert result["checkpoints"] == {"loaded": True, "finished": True, "reconstructed": True}


def test_one_process_reads_the_checkpoint_of_two(ranks: list[dict[str, Any]], root: Path) -> None:
    del ranks
    path = root / "checkpoint" / "power_average.pt"
    state = read_state(path)
    assert state["averages"] is None
    assert {each.suffix for each in path.with_suffix("").iterdir()} == {".safetensors"}
    read = reader(path, state, lambda: AveragedWeights(FAMILY.build(), None).room(torch.float32))
    wanted = torch.load(root / "whole.pt", weights_only=True)
    assert state["step"] == wanted["step"] == 3
    for index, averages in enumerate(wanted["averages"]):
        found = read(index)
        assert found.keys() == averages.keys()
        assert all(torch.equal(found[name], value) for name, value in averages.items())
    other = reader(path, state, lambda: AveragedWeights(torch.nn.Linear(2, 2), None).room(torch.float32))
    with pytest.raises(StateError, match=r"this run's averages differ in \d+ tensors, for example 0\."):
        other(0)


def test_all_ranks_choose_one_width(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        assert result["chosen"] == [2.5, 2.0, 0.28]


def test_an_average_of_parameters_that_are_cut_later_is_refused(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        early, meanwhile = result["refused"]["early"], result["refused"]["meanwhile"]
        assert early.startswith("OrderError: FSDP has not cut the model's parameters yet")
        assert "after accelerator.prepare" in early
        assert meanwhile.startswith("OrderError: ")
        assert "was sharded after its average was built" in meanwhile


@slow
def test_passes_in_half_precision_leave_averages_of_float32_shards(others: list[dict[str, Any]]) -> None:
    for result in others:
        assert result["half"]["types"] == ["torch.float32"]
        assert result["half"]["error"] < 1e-6
        assert result["half"]["written"]
