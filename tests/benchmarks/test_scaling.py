"""The traffic and scaling benchmark: formulas against literal twins and real processes, the page against results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprog_diffusion import GrowthConfig
from autoprog_diffusion.growth import find_adapter, fixed_plan
from autoprog_diffusion.growth.units import trainable_names


ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
# Of the published checkpoints.
SIZES = {"SDXL": 2567463684, "SD3 medium": 2028328000, "Flux dev": 11901408320, "DiT-XL/2": 749826464}


@pytest.fixture(autouse=True)
def _in_folder(benchmark_folder: Callable[[str], Path]) -> None:
    benchmark_folder("scaling")


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return json.loads((BENCHMARKS / "scaling" / "summary.json").read_text(encoding="utf-8"))


def test_the_page_shows_the_committed_results(results: dict[str, Any]) -> None:
    from page import tables

    for name, table in tables(results).items():
        assert f"<!-- {name} -->\n{table}<!-- end {name} -->\n" in PAGE


def test_the_models_have_their_published_size(results: dict[str, Any]) -> None:
    assert {model["model"]: model["parameters"] for model in results["models"]} == SIZES


def test_real_processes_sent_what_the_formula_says(results: dict[str, Any]) -> None:
    assert len(results["checked"]) == 16
    for row in results["checked"]:
        assert len(row["counted"]) == 4
        assert row["counted"] == row["expected"]


@pytest.mark.parametrize("order", ["interleaved", "suffix"])
def test_a_stage_sends_the_gradients_of_its_plan(order: Any) -> None:
    from models import SD3
    from traffic import stages

    model = SD3.build(tiny=True)
    layout, sizes = find_adapter(model).layout(model), {name: p.numel() for name, p in model.named_parameters()}
    plan = fixed_plan(GrowthConfig(order=order, direction="unfreeze"), len(layout.blocks), 4)
    steps = list(stages(SD3, order, tiny=True))
    expected = [sum(sizes[name] for name in trainable_names(layout, stage.blocks)) for stage in plan.stages]
    assert [step.trained() for step in steps] == expected
    table = 4 * model.config.num_attention_heads * model.config.attention_head_dim
    assert [step.all_reduced() for step in steps] == [4 * (count + table) for count in expected]
    assert [step.state() for step in steps] == [4 * sum(sizes.values()) + 12 * n + 16 * table for n in expected]


def test_a_frozen_front_is_gathered_once_and_its_last_block_twice() -> None:
    from traffic import Step

    group = [((3, 5), True)]
    step = Step(
        dict.fromkeys(["", "a", "b", "c"], group), [("a", False), ("b", False), ("c", True), ("", True)], 0, 0, 0, 0
    )
    size = 4 * 5 * 2  # 3 rows on 2 ranks are padded to 4; 2 bytes a number
    assert step.gathered(2, 2) == ([size] * 4, [size] * 2)


def test_the_time_of_a_collective_is_the_literal_formula() -> None:
    from simulate import Cluster

    cluster, size = Cluster(), 1e9
    inside = 8.4e-6 + 7 * 3.4e-6 + 7 / 8 * size / (0.8 * 450e9)
    across = 8.4e-6 + 56 * 3.4e-6 + 7 * 14e-6 + 63 / 64 * size / (0.8 * 400e9)
    assert cluster.ring(size, 8) == pytest.approx(inside)
    assert cluster.ring(size, 64) == pytest.approx(across)
    tree = 8.4e-6 + 2 * (7 * 4e-6 + 3 * 14e-6) + 2 * size / (0.85 * 0.8 * 400e9)
    assert cluster.all_reduce(1e3, 64) == pytest.approx(tree - 2 * (size - 1e3) / (0.85 * 0.8 * 400e9))
    assert cluster.all_reduce(size, 64) == pytest.approx(min(tree, 2 * across - 8.4e-6))


def test_speed_never_rises_with_the_gpus(results: dict[str, Any]) -> None:
    for model in results["models"]:
        for curves in model["scaling_ms"].values():
            for name, run in curves.items():
                apart, hidden = run["no overlap"]["run"], run["full overlap"]["run"]
                assert apart == sorted(apart)
                assert all(slow >= fast for slow, fast in zip(apart, hidden))
                assert all(mine <= full for mine, full in zip(apart, curves["full"]["no overlap"]["run"])), name


@pytest.mark.parametrize("name", ["fsdp2.yaml", "hsdp.yaml"])
def test_the_files_of_the_page_are_ones_of_accelerate(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert f"../recipes/configs/{name}" in PAGE
    config = load_config_from_file(str(ROOT / "recipes" / "configs" / name))
    assert config.fsdp_config["fsdp_version"] == 2
    launch = (Path(torch.__file__).parents[1] / "accelerate" / "commands" / "launch.py").read_text(encoding="utf-8")
    assert not [key for key in config.fsdp_config if f'"--{key}"' not in launch]


def test_the_page_names_the_classes_that_were_wrapped(results: dict[str, Any]) -> None:
    for model in results["models"]:
        assert ",".join(model["fsdp_transformer_layer_cls_to_wrap"]) in PAGE


@pytest.mark.distributed
@pytest.mark.slow
def test_two_real_processes_send_what_the_formula_says(tmp_path: Path) -> None:
    from models import DIT
    from run import expect

    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    command += [
        "--rdzv_endpoint",
        "localhost:0",
        str(BENCHMARKS / "scaling" / "two_ranks.py"),
        str(tmp_path),
        DIT.name,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads((tmp_path / "two_ranks.json").read_text(encoding="utf-8"))
    assert [(row["order"], row["backend"]) for row in rows] == [
        ("interleaved", "DDP"),
        ("interleaved", "FSDP2"),
        ("suffix", "DDP"),
        ("suffix", "FSDP2"),
    ]
    for row in rows:
        assert row["counted"] == expect(DIT, row["order"], row["backend"])
