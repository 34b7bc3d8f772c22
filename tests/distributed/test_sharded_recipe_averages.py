"""The recipes under FSDP2 and HSDP with power-function averages, over gloo on the CPU."""

from __future__ import annotations

import json
from typing import Any

import pytest
from safetensors.torch import load_file

from ..tasks.tiny import build_pipeline, write_images
from .test_sharded_recipes import BOUNDARY, STEPS, Tiny, same, worst


pytestmark = [pytest.mark.distributed, pytest.mark.slow]

# Two widths, of which the held-out loss chooses one.
FLAGS = (
    "--no-use_ema", "--average", "on", "--average_widths", 0.2, 0.28, "--lr_scheduler", "constant_with_warmup",
    "--evaluation_steps", 3,
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("sharded_averages")
    build_pipeline(root / "model")
    write_images(root / "images")
    return Tiny(root)


@pytest.fixture(scope="module")
def flags(tiny: Tiny) -> tuple[object, ...]:
    """Those of a run on two ranks that is done."""
    flags = (*FLAGS, "--validation_data_dir", tiny.root / "images")
    tiny.run("cut", "sd", *flags)
    return flags


def held_out(tiny: Tiny, name: str) -> dict[str, Any]:
    return json.loads((tiny.root / name / "held_out.json").read_text())


def test_averages_are_those_of_replicas_and_the_chosen_one_is_saved(tiny: Tiny, flags: tuple[object, ...]) -> None:
    tiny.run("replicated", "sd", *flags, "--no-stage_embedding", config=None)
    assert 0 < worst(tiny.weights("replicated"), tiny.weights("cut")) < 1e-5
    ours, theirs = held_out(tiny, "cut"), held_out(tiny, "replicated")
    assert [row["width"] for row in ours["widths"]] == [0.2, 0.28]
    for mine, other in zip(ours["widths"], theirs["widths"]):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)
    assert ours["best"] == {"step": STEPS, "loss": min(row["loss"] for row in ours["widths"])}
    kept = load_file(tiny.checkpoint("cut", STEPS) / "best" / "weights.safetensors")
    assert same(tiny.weights("cut"), kept)


def test_a_run_resumes_bit_for_bit(tiny: Tiny, flags: tuple[object, ...]) -> None:
    tiny.run("resumed", "sd", *flags, "--resume_from_checkpoint", tiny.checkpoint("cut", BOUNDARY))
    assert same(tiny.weights("resumed"), tiny.weights("cut"))
    shards = sorted((tiny.checkpoint("cut", STEPS) / "power_average").iterdir())
    assert len(shards) == 2
    for shard in shards:
        ours = load_file(tiny.checkpoint("resumed", STEPS) / "power_average" / shard.name)
        assert same(ours, load_file(shard))


def test_averages_travel_to_other_ranks(tiny: Tiny, flags: tuple[object, ...]) -> None:
    """From two ranks to two replicas of two shards, after the last step: what is saved is the average."""
    start = tiny.checkpoint("cut", STEPS)
    tiny.run("hybrid", "sd", *flags, "--resume_from_checkpoint", start, ranks=4, config="hsdp.yaml")
    assert same(tiny.weights("hybrid"), tiny.weights("cut"))
