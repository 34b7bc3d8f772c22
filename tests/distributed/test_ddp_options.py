"""DistributedDataParallel as users set it up: what growth keeps, what it refuses, and what goes over the wire."""

from __future__ import annotations

from typing import Any

import pytest

from .launching import run_ranks


pytestmark = pytest.mark.distributed

OPTIONS = [
    "static_graph",
    "static_graph, views",
    "views",
    "views, zeroed",
    "zeroed",
    "find_unused_parameters",
    "small buckets",
    "all-reduce hook",
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks("ddp_options_script.py", tmp_path_factory.mktemp("options"))


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_changes_no_bit(ranks: list[dict[str, Any]], option: str) -> None:
    for result in ranks:
        assert result["options"][option]
        assert result["options"]["accumulation"]  # two references, of other batches, do differ


@pytest.mark.parametrize("hook", ["python", "builtin"])
def test_a_half_precision_hook_survives_every_rebuild(ranks: list[dict[str, Any]], hook: str) -> None:
    for result in ranks:
        assert 1e-5 < result["half"][hook] < 1e-2
        assert result["half"][hook] == result["half"]["python"]


def test_power_sgd_starts_anew_at_every_stage(ranks: list[dict[str, Any]]) -> None:
    """Two steps of plain all-reduce, while DDP orders its buckets, and then compression again."""
    for result in ranks:
        seen = result["power_sgd"]
        assert seen["stages"] == [0] * 4 + [1] * 4 + [2] * 4
        assert seen["compresses"] == [False, False, True, True] * 3
        assert seen["equal"] == [True] * 12


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("memory", "OrderError: the state of the communication hook allreduce_hook, a Memory, holds tensors"),
        ("local SGD", "OrderError: the communication hook allreduce_hook lets ranks differ between averages"),
        ("mixed precision", "OrderError: DistributedDataParallel with mixed_precision"),
        ("static graph", "OrderError: static_graph=True needs a first backward pass that is synchronised"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(ranks: list[dict[str, Any]], what: str, says: str) -> None:
    for result in ranks:
        assert result["refused"][what].startswith(says)


def test_a_static_graph_with_accumulation_fails_in_torch_itself(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        assert "INTERNAL ASSERT FAILED" in result["refused"]["static graph in torch"]


def test_a_model_with_unused_parameters_needs_them_found(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        assert "find_unused_parameters=True" in result["refused"]["unused"]
        assert result["refused"]["unused, found"] == "nothing"


@pytest.mark.parametrize("family", ["unet2d", "dit"])
def test_only_what_trains_is_sent_and_only_once_per_step(ranks: list[dict[str, Any]], family: str) -> None:
    """Every value that gloo reduces in an accumulated step: one bucket of what trains, and the stage embedding."""
    for result in ranks:
        rows = result["traffic"][family]
        print(family, [f"{4 * sum(row['sent'])} of {4 * row['total']} bytes" for row in rows])
        assert [row["sent"] for row in rows] == [sorted([row["table"], row["trains"]]) for row in rows]
        assert rows[0]["trains"] < rows[1]["trains"] < rows[2]["trains"] == rows[2]["total"]


def test_finding_unused_parameters_costs_one_number_for_every_tensor_that_trains(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        for row in result["traffic, found"]:
            assert row["sent"] == sorted([row["table"], row["tensors"], row["trains"]])
