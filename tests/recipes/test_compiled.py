"""`--compile` with its real backend: a compiled run ends where the same run without it does, and counts its graphs.

Everything else about compiled blocks is in `tests/tasks/test_compile.py`, on a backend that needs no C++ compiler.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ..tasks.tiny_transformers import IMAGENET, build_dit, build_sd3, save, write_classes
from .conftest import Script


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on the CPU"),
]
FLAGS = (
    "--max_train_steps", 6, "--train_batch_size", 4, "--num_stages", 2, "--direction", "freeze", "--order", "suffix",
    "--min_trainable", 0.5, "--lr_scheduler", "constant", "--lr_warmup_steps", 0, "--learning_rate", 1e-3,
    "--average", "off",
)  # fmt: skip
COUNTED = re.compile(r"compiled (\d+) \w+: (\d+) graphs \((.*)\)")


# Recipe, on a DiT, or on SD3 for adapters; flags beside those that all have in common; processes.
CASES = {
    "full": ("finetune_dit", (), 1),
    "checkpointing": ("finetune_dit", ("--gradient_checkpointing",), 1),
    "processes": ("finetune_dit", (), 2),
    "lora": ("finetune_lora", ("--rank", 2), 1),
}
# Of the blocks of one class, which train, are frozen behind one that trains, or run in the frozen front.
MOST_GRAPHS = 2 * 3


@pytest.fixture(scope="module")
def scripts(script: Script, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Script]:
    """The recipes, whose processes share what inductor has compiled."""
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path_factory.mktemp("inductor")), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    environment = cache | script.environment
    settings = {"classes": 3, "learned_variance": True, "id2label": IMAGENET}
    dit = Script(
        "finetune_dit",
        save(tmp_path_factory.mktemp("dit"), build_dit, **settings),
        write_classes(tmp_path_factory.mktemp("classes")),
        environment,
    )
    sd3 = save(tmp_path_factory.mktemp("sd3"), build_sd3)
    lora = replace(script, name="finetune_lora", model=sd3, environment=environment)
    return {"finetune_dit": dit, "finetune_lora": lora}


def weights(output: Path) -> dict[str, torch.Tensor]:
    """What a run has trained."""
    found = [*output.glob("transformer/*.safetensors"), *output.glob("pytorch_lora_weights.safetensors")]
    return {name: tensor for path in found for name, tensor in load_file(path).items()}


def losses(output: Path) -> list[float]:
    """The loss of every step."""
    return json.loads((output / "metrics.json").read_text(encoding="utf-8"))["rows"]["loss"]


@pytest.mark.parametrize("name", CASES)
def test_a_compiled_run_ends_where_the_other_does(name: str, scripts: dict[str, Script], tmp_path: Path) -> None:
    recipe, own, ranks = CASES[name]
    script = scripts[recipe]
    flags = (*FLAGS, *own)
    script.run(tmp_path / "plain", *flags, ranks=ranks)
    printed = script.run(tmp_path / "compiled", *flags, "--compile", ranks=ranks).stdout
    plain, compiled = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    assert list(plain) == list(compiled)
    furthest = max(float((plain[name] - compiled[name]).abs().max()) for name in plain)
    blocks, graphs, stages = COUNTED.search(printed).groups()
    print(f"{name}: {blocks} blocks, {graphs} graphs ({stages}), furthest weight {furthest:.1e}")
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    # A rate of 1e-3 moves a weight by 6e-3 at most.
    assert furthest < 3e-4
    counts = [int(count) for count in re.findall(r"(\d+) in stage", stages)]
    assert len(counts) == 2
    assert sum(counts) == int(graphs) <= MOST_GRAPHS
