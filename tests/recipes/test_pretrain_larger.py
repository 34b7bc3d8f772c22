"""The larger models for benchmarks: their sizes, and a short pretraining that is cut and goes on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import diffusers
import pytest
import torch

from .conftest import ROOT, load_recipe


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    folder = str(ROOT / "recipes" / "assets" / "build")
    sys.path.insert(0, folder)
    yield load_recipe("assets/build/pretrain_larger")
    sys.path.remove(folder)


@pytest.mark.parametrize("kind", ["unet", "flow"])
def test_a_model_has_20_to_40_million_parameters(script: ModuleType, kind: str) -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in script.BUILD[kind]().parameters())
    assert 20e6 < count < 40e6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unet", "flow"])
def test_a_run_that_is_cut_goes_on_and_is_exported(script: ModuleType, tmp_path: Path, kind: str) -> None:
    short = ["--model", kind, "--images", "4", "--batch_size", "2"]
    script.main([*short, "--steps", "2", "--output_dir", str(tmp_path / "once")])
    script.main([*short, "--steps", "1", "--output_dir", str(tmp_path / "cut")])
    cut = script.load_state(tmp_path / "cut" / f"{kind}_state.pt")
    assert cut["step"] == len(cut["losses"]) == 1
    once = script.load_state(tmp_path / "once" / f"{kind}_state.pt")
    assert once["losses"][0] == cut["losses"][0]  # the schedule of the rate is another one
    script.main([*short, "--steps", "2", "--output_dir", str(tmp_path / "cut")])
    assert script.load_state(tmp_path / "cut" / f"{kind}_state.pt")["step"] == 2
    script.main(["--model", kind, "--export", "--output_dir", str(tmp_path / "once")])
    cls = diffusers.StableDiffusionPipeline if kind == "unet" else diffusers.StableDiffusion3Pipeline
    pipeline = cls.from_pretrained(tmp_path / "once" / kind)
    picture = pipeline("a red heart", height=128, width=128, num_inference_steps=1).images[0]
    assert picture.size == (128, 128)
