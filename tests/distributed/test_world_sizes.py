"""A run that goes on with another number of processes: its plan and its decisions travel, and so do the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from .launching import run_ranks


pytestmark = [pytest.mark.distributed, pytest.mark.slow]

# Stages begin after steps 2, 6, 12 and 18. Both stops are in the middle of a search's window of two steps: one of its
# calls comes from the checkpoint.
STOPS = (0, 5, 11, 24)
KINDS = ["searched", "sharded"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[dict[str, Any]]]]:
    """The folder, and what the ranks of three launches wrote; the first one also runs the whole training."""
    root = tmp_path_factory.mktemp("world_sizes")
    launches = []
    for number, ranks in enumerate((2, 1, 2)):
        parts = [("travelled", *STOPS[number : number + 2])] + [("whole", 0, STOPS[-1])] * (number == 0)
        folder, arguments = root / f"launch{number}", (str(root), json.dumps(parts))
        launches.append(run_ranks("world_size_script.py", folder, *arguments, ranks=ranks))
    return root, launches


def test_the_number_of_ranks_did_change(runs: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    assert [[result["ranks"] for result in launch] for launch in runs[1]] == [[2, 2], [1], [2, 2]]


@pytest.mark.parametrize("kind", KINDS)
def test_plan_and_decisions_are_those_of_the_whole_run(
    runs: tuple[Path, list[list[dict[str, Any]]]], kind: str
) -> None:
    first, _, last = runs[1]
    expected = first[0][f"whole-{kind}"]
    for result in last:
        for what in ("plan", "decisions", "history"):
            assert result[f"travelled-{kind}"][what] == expected[what]
    assert len(expected["decisions"]) == (3 if kind == "searched" else 0)
    assert len(expected["history"]) == (5 if kind == "searched" else 3)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_the_whole_run(runs: tuple[Path, list[list[dict[str, Any]]]], kind: str) -> None:
    root, launches = runs
    travelled, whole = (torch.load(root / name / f"{kind}-{STOPS[-1]}.pt") for name in ("travelled", "whole"))
    assert travelled.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(travelled[name], whole[name])] == []
    assert all(result[f"travelled-{kind}"]["equal"] for launch in launches for result in launch)


def test_the_calls_of_a_search_are_kept_by_every_rank(runs: tuple[Path, list[list[dict[str, Any]]]]) -> None:
    files = [launch[0]["travelled-searched"]["calls"] for launch in runs[1]]
    assert files[0] == ["growth_calls_0.pt", "growth_calls_1.pt"]
    assert files[1] == ["growth_calls_0.pt"]  # the second rank of the next launch reads this one too
