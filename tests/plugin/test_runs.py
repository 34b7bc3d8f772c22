"""Diffusers' own scripts with growth plugged in, run to the end on tiny pipelines."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from autoprog_diffusion import GrowthConfig, GrowthScheduler

from .scripts import BY_NAME, OFF, TWO_STAGES, Run, Script, Workshop, every_run, needs_checkout, patched


pytestmark = [needs_checkout, pytest.mark.slow]

WEIGHTS = "diffusion_pytorch_model.safetensors"
BIAS = "time_embedding.linear_2.bias"
TEXT_TO_IMAGE = BY_NAME["train_text_to_image"]


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor under a folder, checkpoints and averages included, by file and name."""
    files = {str(path.relative_to(folder)): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}
    return {f"{name}:{key}": tensor for name, file in files.items() for key, tensor in file.items()}


def trained(script: Script, folder: Path) -> dict[str, Tensor]:
    """The model that grows, of a checkpoint or a pipeline; of an adapter, only what starts at zero."""
    if not script.lora:
        return load_file(folder / script.component / WEIGHTS)
    weights = load_file(folder / "pytorch_lora_weights.safetensors")
    return {name.partition(".")[2]: tensor for name, tensor in weights.items() if "lora_B" in name}


def growth_state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "custom_checkpoint_0.pkl", weights_only=True)


def different(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that differ in any bit."""
    assert ours.keys() == theirs.keys()
    return [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]


def picture(script: Script, pipeline: Any) -> np.ndarray:
    """What a pipeline draws in two steps, with the noise of seed 0."""
    pipeline.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 2, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    if script.name != "train_unconditional":
        given |= {"prompt": "a picture", "height": 16, "width": 16}
    if script.lora:
        given["max_sequence_length"] = 16
    image = pipeline(**given).images[0]
    assert image.shape == (16, 16, 3)
    assert np.isfinite(image).all()
    return image


@every_run
def test_one_full_stage_is_the_script_itself(script: Script, workshop: Workshop, tmp_path: Path) -> None:
    plain = workshop.plain(script, tmp_path, *script.ema_flags)
    grown = workshop.grow(script, tmp_path, *script.ema_flags, config=OFF)
    assert "stage 1 of 1 at step 0" in grown.log
    ours, theirs = tensors(grown.output), tensors(plain.output)
    assert any("checkpoint-4" in name for name in ours)
    assert different(ours, theirs) == []


@every_run
def test_frozen_blocks_rest_until_they_open(
    script: Script, workshop: Workshop, grown: Callable[[Script], Run]
) -> None:
    output = grown(script).output
    first, second = growth_state(output / "checkpoint-4")["history"]
    assert (first["step"], second["step"]) == (0, 2)
    model = getattr(diffusers.DiffusionPipeline.from_pretrained(workshop.pipeline(script)), script.component)
    blocks = GrowthScheduler(model, GrowthConfig(num_stages=2)).layout.blocks
    assert [unit.name for unit in blocks] == list(second["blocks"])
    closed = tuple(f"{name}." for unit in blocks if unit.name not in first["blocks"] for name in unit.modules)
    early, late = (trained(script, output / f"checkpoint-{step}") for step in (2, 4))
    start = {k: torch.zeros_like(v) for k, v in early.items()} if script.lora else model.state_dict()
    assert closed
    assert set(early) - set(different(early, dict(start))) == {name for name in early if name.startswith(closed)}
    assert different(late, early) == [name for name in early if name not in script.idle]


@every_run
def test_the_result_is_the_last_checkpoint_with_the_stage_folded_in(
    script: Script, grown: Callable[[Script], Run]
) -> None:
    output = grown(script).output
    final, last = trained(script, output), trained(script, output / "checkpoint-4")
    embedding = growth_state(output / "checkpoint-4")["embedding"]
    if script.lora:
        assert embedding is None
        assert different(final, last) == []
    else:
        assert different(final, last) == [BIAS]
        assert torch.equal(final[BIAS], last[BIAS] + embedding["table"][-1])


@every_run
def test_the_result_loads_without_this_library(
    script: Script, workshop: Workshop, grown: Callable[[Script], Run]
) -> None:
    output, start = grown(script).output, workshop.pipeline(script)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(start)
    before = picture(script, pipeline)
    if script.lora:
        pipeline.load_lora_weights(output)
        assert pipeline.get_list_adapters() == {"transformer": ["default_0"]}
    else:
        model = getattr(pipeline, script.component)
        loading = type(model).from_pretrained(output, subfolder=script.component, output_loading_info=True)[1]
        assert not any(loading.values()), loading
        pipeline = diffusers.DiffusionPipeline.from_pretrained(output)
    assert not np.array_equal(before, picture(script, pipeline))


@every_run
def test_a_killed_run_resumes_bit_for_bit(
    script: Script, workshop: Workshop, grown: Callable[[Script], Run], tmp_path: Path
) -> None:
    whole = grown(script).output
    # What a run leaves that was killed after its first checkpoint, which is at the stage boundary.
    shutil.copytree(whole / "checkpoint-2", tmp_path / "grown" / "checkpoint-2")
    resumed = workshop.grow(script, tmp_path, "--resume_from_checkpoint", "latest")
    assert "Resuming from checkpoint checkpoint-2" in resumed.log
    states = [growth_state(folder / "checkpoint-4") for folder in (whole, resumed.output)]
    assert states[0]["history"] == states[1]["history"]
    assert different(tensors(resumed.output), tensors(whole)) == []


def test_with_an_average_the_averaged_row_is_folded(workshop: Workshop, tmp_path: Path) -> None:
    config = "GrowthConfig(num_stages=2, ema_decay=ema_unet.decay)"
    output = workshop.grow(TEXT_TO_IMAGE, tmp_path, "--use_ema", config=config).output
    final, average = trained(TEXT_TO_IMAGE, output), load_file(output / "checkpoint-4" / "unet_ema" / WEIGHTS)
    embedding = growth_state(output / "checkpoint-4")["embedding"]
    assert different(final, average) == [BIAS]
    assert torch.equal(final[BIAS], average[BIAS] + embedding["average"][-1])
    assert not torch.equal(embedding["average"], embedding["table"])


def test_resolutions_grow_with_one_line_more(
    workshop: Workshop, grown: Callable[[Script], Run], tmp_path: Path
) -> None:
    file = patched(TEXT_TO_IMAGE, tmp_path, TWO_STAGES[:-1] + ", resolutions=(0.5, 1.0))")
    text, place = file.read_text(encoding="utf-8"), " " * 16 + "# Convert images to latent space\n"
    assert text.count(place) == 1
    line = " " * 16 + 'batch["pixel_values"] = growth.resize(batch["pixel_values"])\n'
    file.write_text(text.replace(place, line + place), encoding="utf-8")
    run = workshop.run(TEXT_TO_IMAGE, file, tmp_path / "resized")
    assert "resolution 0.5" in run.log
    full = trained(TEXT_TO_IMAGE, grown(TEXT_TO_IMAGE).output)
    assert different(trained(TEXT_TO_IMAGE, run.output), full) == list(full)


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["train_text_to_image", "train_dreambooth_lora_sd3"])
def test_two_ranks_grow_and_save(name: str, workshop: Workshop, tmp_path: Path) -> None:
    script = BY_NAME[name]
    run = workshop.grow(script, tmp_path, *script.ema_flags, config=TWO_STAGES, ranks=2)
    assert "stage 2 of 2 at step 2" in run.log
    assert growth_state(run.output / "checkpoint-4")["step"] == 4
    assert trained(script, run.output).keys() == trained(script, run.output / "checkpoint-4").keys()
