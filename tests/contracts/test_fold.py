"""A folded model is a plain one: the same function, loaded without this library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ..settings import FAMILIES, Family
from .common import (
    families,
    growable,
    hooks,
    in_turn,
    outputs,
    relative_error,
    start,
    train,
)


# Those whose library can build them again from a folder.
RELOADED = [family for family in FAMILIES if family.reloads]
VANILLA = """
import json, sys
from pathlib import Path

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "autoprog_diffusion":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocker())
try:
    import autoprog_diffusion
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("autoprog_diffusion could be imported")
import diffusers, torch, transformers
torch.set_num_threads(1)
for folder in sorted(Path(sys.argv[1]).iterdir()):
    config = json.loads((folder / "config.json").read_text())
    if "architecture" in config:
        import timm
        model, options = timm.create_model(f"local-dir:{folder}", pretrained=True), {}
    else:
        name = config.get("_class_name") or config["architectures"][0]
        model, options = getattr(diffusers, name, getattr(transformers, name, None)), {"return_dict": False}
        model = model.from_pretrained(folder)
    inputs = torch.load(folder / "inputs.pt", weights_only=True)
    with torch.no_grad():
        outputs = model.eval()(**inputs, **options)
        outputs = outputs[0] if options else outputs
        torch.save(torch.stack(outputs) if isinstance(outputs, list) else outputs, folder / "outputs.pt")
    (folder / "class.txt").write_text(type(model).__name__)
"""


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every family trained over three stages and folded; its outputs before, after, and in a process without us."""
    root: Path = tmp_path_factory.mktemp("folded")
    results: dict[str, dict[str, Any]] = {}
    for family in FAMILIES:
        torch.manual_seed(0)
        model, growth, optimizer = start(family, steps=3)
        for step in range(3):
            train(family, model, optimizer, step)
            growth.step()
        result = results[family.id] = {"model": model, "rows": torch.ones(3, 1)}
        if growth.stage_embedding is not None:
            result["rows"] = growth.stage_embedding.table.detach().clone()
        result["before"] = outputs(family, model)
        growth.fold(model)
        result["after"] = outputs(family, model)
        if family not in RELOADED:
            continue
        family.save(model, root / family.id)
        torch.save(family.inputs(7, 2), root / family.id / "inputs.pt")
    command = [sys.executable, "-c", VANILLA, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=root)
    assert done.returncode == 0, done.stderr
    for family in RELOADED:
        results[family.id]["vanilla"] = torch.load(root / family.id / "outputs.pt", weights_only=True)
        results[family.id]["class"] = (root / family.id / "class.txt").read_text()
    return results


@families
def test_fold_is_exact_and_leaves_a_model_that_reloads_without_the_library(
    family: Family, folded: dict[str, dict[str, Any]]
) -> None:
    result = folded[family.id]
    assert (result["rows"].abs().amax(dim=1) > 1e-3).all()
    assert relative_error(result["after"], result["before"]) < 1e-5
    model = result["model"]
    assert hooks(model) == []
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == growable(family)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in family.build().named_parameters()}
    if family in RELOADED:  # in a process that cannot import this library
        assert result["class"] == type(model).__name__
        assert torch.equal(result["vanilla"], result["after"])


@pytest.mark.parametrize("family", [in_turn(family) for family in FAMILIES if family.points])
def test_fold_writes_the_averaged_row(family: Family) -> None:
    model, growth, optimizer = start(family, ema_decay=0.9)
    for step in range(6):
        train(family, model, optimizer, step)
        growth.step()
    embedding = growth.stage_embedding
    assert not torch.equal(embedding.average[2], embedding.table[2])
    with torch.no_grad():
        embedding.table.copy_(embedding.average)
    before = outputs(family, model)
    growth.fold(model)
    assert relative_error(outputs(family, model), before) < 1e-5
