"""Parts of the pretraining of the bundled transformers, and a short one that is cut and goes on."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from .conftest import ROOT, load_recipe


BUILD = ROOT / "recipes" / "assets" / "build"


@pytest.fixture(scope="module", autouse=True)
def neighbours() -> Iterator[None]:
    """The folder in which the scripts find each other."""
    sys.path.insert(0, str(BUILD))
    yield
    sys.path.remove(str(BUILD))


@pytest.fixture(scope="module")
def recipe(neighbours: None) -> ModuleType:
    return load_recipe("assets/build/pretrain_tiny_transformers")


@pytest.fixture(scope="module")
def dit(neighbours: None) -> ModuleType:
    return importlib.import_module("tiny_dit")


def test_both_scripts_import_all_they_need(recipe: ModuleType) -> None:
    assert {"vae", "unet", "export"} <= set(load_recipe("assets/build/pretrain_tiny_sd").PHASES)


def test_a_file_is_short() -> None:
    for path in sorted(BUILD.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert text.isascii()
        assert len(text.splitlines()) <= 350
        assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("kind", ["dit", "flow"])
def test_the_optimizer_takes_every_parameter_once(recipe: ModuleType, kind: str) -> None:
    model = recipe.build_dit(16) if kind == "dit" else recipe.build_flow()
    assert 2e6 < sum(parameter.numel() for parameter in model.parameters()) < 4e6
    matrices, others = (group["params"] for group in recipe.matrix_groups(model).param_groups)
    assert {*matrices, *others} == set(model.parameters())
    assert len(matrices) + len(others) == len(list(model.parameters()))
    assert all(parameter.ndim == 2 for parameter in matrices)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert not [names[parameter] for parameter in matrices if "embedding_table" in names[parameter]]


def test_both_models_start_by_predicting_nothing(recipe: ModuleType) -> None:
    latents = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    loss = recipe.dit_loss(recipe.build_dit(3), latents, torch.tensor([0, 1, 2, 0]), 3, recipe.dit_scheduler())
    assert loss.item() == pytest.approx(1.0, abs=0.2)  # the velocity has unit variance
    rows, tokens, pooled = torch.arange(4), torch.randn(5, 16, 256), torch.randn(5, 256)
    loss = recipe.flow_loss(recipe.build_flow(), latents, rows, tokens, pooled, fill=2)
    assert loss.item() == pytest.approx(2.0, abs=0.3)  # noise minus latents


def test_stratified_times_hit_every_part_once(dit: ModuleType) -> None:
    values = dit.stratified(8)
    assert sorted((values * 8).long().tolist()) == list(range(8))


def test_padded_tables_repeat_the_unconditional_row(dit: ModuleType) -> None:
    model = dit.build_dit(3)
    last = model.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight[3].clone()
    dit.pad_tables(model)
    table = model.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight
    assert table.shape == (1001, 128)
    assert torch.equal(table[1000], last)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dit", "flow"])
def test_a_cut_pretraining_goes_on_with_the_batches_it_would_have_seen(
    kind: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    def train(output: Path, steps: int, *flags: str) -> dict[str, torch.Tensor]:
        script = str(BUILD / "pretrain_tiny_transformers.py")
        command = [sys.executable, script, "--model", kind, "--batch_size", "4", "--output_dir", str(output)]
        command += ["--steps", str(steps), *flags]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=900)
        return torch.load(output / f"{kind}_state.pt", weights_only=True)

    whole = train(tmp_path / "whole", 4, "--lr", "0")
    train(tmp_path / "cut", 2, "--lr", "0")
    cut = train(tmp_path / "cut", 4, "--lr", "0")
    assert cut["losses"] == whole["losses"]
    assert len(set(cut["losses"])) == 4
