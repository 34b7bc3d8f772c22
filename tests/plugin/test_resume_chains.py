"""Patched scripts with the default plan: short, run by epochs, and resumed several times with more steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from .scripts import BY_NAME, Script, Workshop, needs_checkout, patched


pytestmark = [needs_checkout, pytest.mark.slow]

# Flags of one run after the other, of 8 images in batches of 2, two batches a step.
RESUME = ("--resume_from_checkpoint", "latest")
CHAIN = [
    ("--num_train_epochs", "1"),  # 2 steps
    ("--max_train_steps", "4", *RESUME),
    ("--max_train_steps", "7", "--checkpoints_total_limit", "2", *RESUME),
    ("--max_train_steps", "7", *RESUME),  # from its last checkpoint, 6
    ("--num_train_epochs", "4", *RESUME),  # 8 steps
]
LORA = [
    ("--max_train_steps", "1", "--checkpointing_steps", "1"),
    ("--max_train_steps", "3", "--checkpointing_steps", "1", *RESUME),
    ("--max_train_steps", "3", "--checkpointing_steps", "1", *RESUME),  # at its last step
]


def growth_states(folder: Path) -> dict[int, dict[str, Any]]:
    """Saved growth states by the step of their checkpoint."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        step = int(path.name.rpartition("-")[2])
        found[step] = torch.load(path / "custom_checkpoint_0.pkl", weights_only=True)
    return found


def without_steps(script: Script) -> Script:
    """The script without a number of steps among its flags."""
    place = script.flags.index("--max_train_steps")
    return replace(script, flags=script.flags[:place] + script.flags[place + 2 :])


def test_a_full_model_goes_on_from_run_to_run(workshop: Workshop, tmp_path: Path) -> None:
    script = without_steps(BY_NAME["train_text_to_image"])
    file = patched(script, tmp_path / "source", "GrowthConfig()")
    starts = []
    for flags in CHAIN:
        workshop.run(script, file, tmp_path / "out", "--use_ema", *flags)
        states = growth_states(tmp_path / "out")
        newest = states[max(states)]
        assert newest["step"] == max(states)
        starts.append([stage["start"] for stage in newest["plan"]["stages"]])
    assert starts == [[0, 1]] * len(CHAIN)  # the first run had room for two stages, and ended in the second
    assert sorted(states) == [4, 6, 8]


@pytest.mark.parametrize("layers", ["attn.to_k", "single_transformer_blocks.0.attn.to_k"])
def test_a_lora_on_one_layer_goes_on_from_run_to_run(layers: str, workshop: Workshop, tmp_path: Path) -> None:
    script = without_steps(BY_NAME["train_dreambooth_lora_flux"])
    file = patched(script, tmp_path / "source")
    for flags in LORA:
        workshop.run(script, file, tmp_path / "out", "--lora_layers", layers, *flags)
    assert sorted(growth_states(tmp_path / "out")) == [1, 2, 3]
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").exists()
