"""The readable recipe trains the bundled model and leaves a pipeline that Diffusers loads without this package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from .conftest import ROOT


pytestmark = pytest.mark.smoke
SCRIPT = ROOT / "recipes" / "minimal.py"


def test_it_trains_and_leaves_a_plain_pipeline(tmp_path: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, str(SCRIPT), "--output_dir", str(tmp_path / "out"), "--max_train_steps", "8"]
    done = subprocess.run(
        [*command, "--train_batch_size", "2"], capture_output=True, text=True, timeout=900, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "step 8/8: loss" in done.stdout
    before = StableDiffusionPipeline.from_pretrained(ROOT / "recipes" / "assets" / "tiny_sd")
    after = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    weights, start = after.unet.state_dict(), before.unet.state_dict()
    assert list(weights) == list(start)
    assert any(not torch.equal(weights[name], start[name]) for name in weights)
    assert all(torch.equal(a, b) for a, b in zip(after.vae.parameters(), before.vae.parameters()))


def test_it_is_short_enough_to_read() -> None:
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 130
