"""Every block of Python of every page: it runs, or is read closely, so that its names and keywords are real."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import ViTConfig, ViTForImageClassification

from autoprog_diffusion import GrowthConfig, GrowthScheduler, HeldOut, PowerAverage
from autoprog_diffusion.growth import GrowthPlan
from autoprog_diffusion.search.noise_scale import NoiseProbe

from ..settings import BY_ID
from .pages import Block, blocks


BLOCKS = blocks("python")
# What names stand for that a page takes from the reader's script.
TYPES: dict[str, Any] = {
    "growth": GrowthScheduler,
    "held_out": HeldOut,
    "average": PowerAverage,
    "probe": NoiseProbe,
    "plan": GrowthPlan,
}
ALONE = ("docs/start.md:python-0", "docs/add_a_model.md:python-0")


def block_named(name: str) -> Block:
    (found,) = [block for block in BLOCKS if str(block) == name]
    return found


def run(block: Block, **names: Any) -> dict[str, Any]:
    """Run a block; the lines of `...` stand for the reader's own."""
    exec(compile(block.code, str(block), "exec"), names)
    return names


@pytest.mark.parametrize("name", ALONE)
def test_a_whole_script_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = run(block_named(name), __name__="__main__")
    assert names["growth"].stage == len(names["growth"].plan.stages) - 1


def test_the_lines_on_checkpointing_and_offloading_run() -> None:
    unet = BY_ID["sd"].build()
    names = run(
        block_named("docs/integrate.md:python-0"),
        unet=unet,
        accelerator=Accelerator(),
        GrowthConfig=GrowthConfig,
        GrowthScheduler=GrowthScheduler,
    )
    optimizer = torch.optim.AdamW(names["growth"].parameters())
    run(block_named("docs/integrate.md:python-4"), optimizer=optimizer)


def test_the_lines_on_tokens_run() -> None:
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=64)
    vit = ViTForImageClassification(config)
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    run(block_named("vit/asvit/README.md:python-0"), vit=vit)
    assert all(torch.equal(value, before[name]) for name, value in vit.state_dict().items())


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_names_and_keywords_are_real(block: Block) -> None:
    if "timm" in block.code:
        pytest.importorskip("timm")
    tree = ast.parse(block.code)
    known = dict(TYPES)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            known |= {alias.name: getattr(module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            known |= {alias.name: importlib.import_module(alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            check_call(node, known)


def check_call(call: ast.Call, known: dict[str, Any]) -> None:
    """The function is there, and takes the keywords."""
    path = list(names_of(call.func))
    if not path or path[0] not in known:
        return
    function = known[path[0]]
    for name in path[1:]:
        function = getattr(function, name)
    keywords = {keyword.arg for keyword in call.keywords if keyword.arg}
    if inspect.isbuiltin(function):  # torch's own functions have no signature
        return
    parameters = inspect.signature(function).parameters
    if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
        assert keywords <= set(parameters), f"{'.'.join(path)} does not take {keywords - set(parameters)}"


def names_of(node: ast.expr) -> Iterator[str]:
    """The names of `a.b.c`, from the left; nothing for other expressions."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        before = list(names_of(node.value))
        if before:
            yield from (*before, node.attr)


def test_a_wrong_keyword_is_found() -> None:
    (call,) = [node for node in ast.walk(ast.parse("growth.prepare(unet, steps=3)")) if isinstance(node, ast.Call)]
    with pytest.raises(AssertionError, match="does not take {'steps'}"):
        check_call(call, TYPES)
