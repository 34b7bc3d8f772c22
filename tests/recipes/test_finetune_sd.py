"""The fine-tuning script, run as users run it: in processes of its own, killed and started again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from autoprog_diffusion.growth import GrowthPlan
from autoprog_diffusion.reporting import write_page

from ..reporting.page_parser import Page
from .conftest import Script


UnetBytes = Callable[[Path], bytes]

# 24 images are 3 steps of 2 batches of 4: the run crosses two epochs. Everything that has a state is on.
FLAGS = (
    "--max_train_steps", 8, "--train_batch_size", 4, "--gradient_accumulation_steps", 2, "--random_flip",
    "--use_ema", "--ema_decay", 0.7, "--lr_scheduler", "cosine", "--lr_warmup_steps", 2, "--snr_gamma", 5.0,
    "--learning_rate", 1e-3, "--checkpointing_steps", 3, "--gradient_checkpointing", "--noise_offset", 0.05,
)  # fmt: skip
STAGES = ("--resolutions", 0.5, 0.5, 1, 1, "--stage_embedding_init", "normal", "--accumulations", 2, 1, 3, 2)
PICTURES = ("--validation_prompts", "a", "b", "--validation_steps", 4)

VANILLA = """
import sys
sys.modules["autoprog_diffusion"] = None  # an import of it fails
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None)
image = pipeline("a", height=64, width=64, num_inference_steps=2).images[0]
assert image.size == (64, 64)
print("names", *sorted(pipeline.unet.state_dict()))
"""


@pytest.fixture(scope="module")
def whole(script: Script, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output folder of an uninterrupted run, and what it printed."""
    output = tmp_path_factory.mktemp("whole") / "out"
    done = script.run(output, *FLAGS, *STAGES, *PICTURES, *held_out(script), "--report_to", "tensorboard")
    return output, done.stdout


def held_out(script: Script) -> tuple[object, ...]:
    """Flags that evaluate, so that the best weights are kept in every checkpoint."""
    return ("--validation_data_dir", script.images, "--evaluation_steps", 2)


def unet_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_a_run_leaves_what_the_readme_promises(whole: tuple[Path, str]) -> None:
    output, printed = whole
    for name in ("before_after.png", "timeline.png", "validation-4.png", "validation-8.png"):
        pixels = np.asarray(Image.open(output / name).convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10, name
    names = [path.name for path in sorted((output / "checkpoints").iterdir())]
    assert names == ["checkpoint-3", "checkpoint-6", "checkpoint-8"]  # the last step's too
    assert list((output / "logs").rglob("events.out.tfevents.*"))
    assert not (output / "stage_embedding.safetensors").exists()
    assert not list(output.rglob("*.tmp"))
    assert "progressive training, stage by stage" in printed
    assert len([line for line in printed.splitlines() if line.startswith("│")]) == 4
    assert json.loads((output / "run.json").read_text())["train"]["max_train_steps"] == 8


def test_growth_json_tells_the_run(whole: tuple[Path, str]) -> None:
    output, _ = whole
    plan = GrowthPlan.load(output / "growth.json")
    assert plan == GrowthPlan.load(output / "growth_plan.json")
    assert [stage.start for stage in plan.stages] == [0, 2, 4, 6]
    assert [stage.resolution for stage in plan.stages] == [0.5, 0.5, 1.0, 1.0]
    assert plan.num_blocks == len(plan.stages[0].blocks) == 10
    assert [len(stage.blocks) for stage in plan.stages] == [10, 8, 5, 3]
    values = json.loads((output / "growth.json").read_text())
    assert [row["steps"] for row in values["stages"]] == [2, 2, 2, 2]
    # No stage trains all blocks at full size, so what full training would have cost is not known.
    assert values["saving_against_full"] == {"time": None, "flops": None}
    assert [(row["stage"], row["step"]) for row in values["history"]] == [(0, 0), (1, 2), (2, 4), (3, 6)]


def test_the_report_tells_the_run(whole: tuple[Path, str], tmp_path: Path) -> None:
    output, _ = whole
    growth = json.loads((output / "growth.json").read_text())
    for step in (3, 6, 8):
        checkpoint = output / "checkpoints" / f"checkpoint-{step}"
        metrics = json.loads((checkpoint / "metrics.json").read_text())
        assert metrics["steps"] == len(metrics["rows"]["loss"]) == step
        assert GrowthPlan.load(checkpoint / "growth.json").num_training_steps == 8
    metrics = json.loads((output / "metrics.json").read_text())
    assert sum(metrics["rows"]["seconds"]) == pytest.approx(sum(row["seconds"] for row in growth["stages"]), rel=1e-4)
    file = write_page([output], tmp_path / "report.html")
    found = Page(file.read_text(encoding="utf-8"))
    assert "UNet2DConditionModel" in found.words
    assert "Complete: 8 of 8 steps." in found.words
    assert "on 24 images from" in found.words
    assert len(found.all("img")) == 3  # after 4 and 8 steps, and before and after
    titles = re.findall(r"<title>(\S+) trains in stage (\d)</title>", file.read_text(encoding="utf-8"))
    trained = [(name, str(record["stage"] + 1)) for record in growth["history"] for name in record["blocks"]]
    assert titles == trained


def test_tensorboard_has_every_step_the_pictures_and_the_plan(whole: tuple[Path, str]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    output, _ = whole
    metrics = json.loads((output / "metrics.json").read_text())
    events = accumulator.EventAccumulator(str(output / "logs" / "autoprog-diffusion"))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == list(range(1, 9))
    assert [event.value for event in events.Scalars("train_loss")] == pytest.approx(metrics["rows"]["loss"], rel=1e-5)
    assert [event.value for event in events.Scalars("growth/stage")] == metrics["rows"]["stage"]
    assert [event.step for event in events.Images("samples")] == [0, 4, 8, 8]  # before, twice while it trains, after
    (settings,) = (output / "logs").rglob("hparams.yml")
    assert "plan/stage_4/blocks: 7-9" in settings.read_text()


def test_one_file_repeats_a_run_bit_for_bit(
    whole: tuple[Path, str], script: Script, tmp_path: Path, unet_bytes: UnetBytes
) -> None:
    output = tmp_path / "again"
    script.run_bare(("--config", whole[0] / "run.yaml", "--output_dir", output))
    assert unet_bytes(output) == unet_bytes(whole[0])
    first, again = ((folder / "run.yaml").read_text().splitlines() for folder in (whole[0], output))
    changed = [line for line in (*first, *again) if (line in first) != (line in again)]
    # What the machine chose the first time is said by the file the second time.
    assert [line.partition(":")[0] for line in changed if line[0] != "#"] == ["output_dir", "output_dir"]


@pytest.mark.slow
def test_a_killed_run_of_windows_resumes_bit_for_bit(script: Script, tmp_path: Path, unet_bytes: UnetBytes) -> None:
    windows = (
        "--direction", "window", "--num_stages", 8, "--sweeps", 2, "--window_state", "park",
        "--frozen_dtype", "bfloat16", "--optimizer", "adamw8bit",
    )  # fmt: skip
    whole = tmp_path / "whole"
    script.run(whole, *FLAGS, *windows)
    output = tmp_path / "out"
    script.kill_after(output, "checkpoint-3", *FLAGS, *windows)
    script.run(output, *FLAGS, *windows, "--resume_from_checkpoint", "latest")
    assert unet_bytes(output) == unet_bytes(whole)


def test_the_pipeline_is_loaded_by_diffusers_alone(whole: tuple[Path, str], script: Script) -> None:
    output, _ = whole
    command = [sys.executable, "-c", VANILLA, str(output)]
    done = subprocess.run(command, env=script.environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert "newly initialized" not in done.stderr
    assert "not used" not in done.stderr
    start, end = unet_tensors(script.model), unet_tensors(output)
    names = next(line for line in done.stdout.splitlines() if line.startswith("names")).split()[1:]
    assert names == sorted(start) == sorted(end)
    assert all(start[name].shape == end[name].shape for name in start)
    assert all(not torch.equal(start[name], end[name]) for name in start)
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        for path in (script.model / part).glob("*.safetensors"):
            assert path.read_bytes() == (output / part / path.name).read_bytes()


def test_a_killed_run_resumes_bit_for_bit(
    whole: tuple[Path, str], script: Script, tmp_path: Path, unet_bytes: UnetBytes
) -> None:
    output = tmp_path / "out"
    flags = (*FLAGS, *STAGES, *PICTURES, *held_out(script))
    script.kill_after(output, "checkpoint-3", *flags)
    # What a kill inside `save_state`, and a lost file, would have left.
    torn = output / "checkpoints" / "checkpoint-6.tmp"
    torn.mkdir(exist_ok=True)
    (torn / "model.safetensors").write_bytes(b"half")
    shutil.copytree(output / "checkpoints" / "checkpoint-3", output / "checkpoints" / "checkpoint-7")
    (output / "checkpoints" / "checkpoint-7" / "model.safetensors").unlink()
    script.run(output, *flags, "--resume_from_checkpoint", "latest")
    assert unet_bytes(output) == unet_bytes(whole[0])
    assert not list((output / "checkpoints").glob("*.tmp"))
    ours, theirs = (json.loads((folder / "growth.json").read_text()) for folder in (output, whole[0]))
    for key in ("plan", "config"):
        assert ours[key] == theirs[key]
    assert [row["loss"] for row in ours["stages"]] == [row["loss"] for row in theirs["stages"]]
    for name in ("0.png", "1.png"):
        assert (output / "before" / name).read_bytes() == (whole[0] / "before" / name).read_bytes()
    ours, theirs = (json.loads((folder / "held_out.json").read_text()) for folder in (output, whole[0]))
    assert [row["step"] for row in ours["evaluations"]] == [0, 2, 4, 6, 8]
    for mine, other in zip(ours["evaluations"], theirs["evaluations"]):
        assert {**mine, "seconds": 0} == {**other, "seconds": 0}


def test_a_run_tells_its_held_out_loss_and_keeps_the_best(whole: tuple[Path, str]) -> None:
    output, printed = whole
    values = json.loads((output / "held_out.json").read_text())
    losses = [row["loss"] for row in values["evaluations"]]
    best = values["best"]["step"]
    assert values["best"]["loss"] == min(losses[1:])
    assert (values["images"], values["draws"], values["stopped"]) == (24, 2, None)
    assert f"step 0: held-out loss {losses[0]:.4f}\n" in printed
    assert f"Best at step {best} of 8; " in printed
    assert "note: 24 of 24 validation images are near-duplicates of images that are trained on" in printed
    events = b"".join(file.read_bytes() for file in (output / "logs").rglob("events.out.tfevents.*"))
    for name in (b"held_out/loss", b"held_out/loss_0.75_1.00"):
        assert name in events
    assert not (output / "best").exists()  # the result holds them
    assert (output / "checkpoints" / "checkpoint-8" / "best" / "weights.safetensors").exists()


def test_the_plan_of_a_run_gives_the_same_run(
    whole: tuple[Path, str], script: Script, tmp_path: Path, unet_bytes: UnetBytes
) -> None:
    flags = (*FLAGS, *held_out(script), "--stage_embedding_init", "normal")
    flags += ("--growth_plan", whole[0] / "growth.json")
    script.run(tmp_path / "out", *flags)
    assert unet_bytes(tmp_path / "out") == unet_bytes(whole[0])


@pytest.mark.slow
def test_suffix_growth_with_dropped_stages_and_images_from_disk(script: Script, tmp_path: Path) -> None:
    output = tmp_path / "out"
    script.run(
        output, "--max_train_steps", 4, "--train_batch_size", 8, "--direction", "unfreeze", "--stage_dropout",
        0.1,        "--no-cache_latents", "--dataloader_num_workers", 1, "--validation_prompts", "a",
    )  # fmt: skip
    plan = GrowthPlan.load(output / "growth.json")
    assert plan.stages[0].blocks == (7, 8, 9)
    table = load_file(output / "stage_embedding.safetensors")
    assert sorted(table) == ["null", "stage"]
    assert sorted(unet_tensors(output)) == sorted(unet_tensors(script.model))
    assert not list((output / "cache").glob("latents*"))


def test_bad_input_ends_with_one_line_and_no_traceback(script: Script, tmp_path: Path) -> None:
    done = script.run(tmp_path / "out", "--resolution", 66, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "error: --resolution 66 is not a multiple of 8 (of VAE, denoiser and pipeline): use 64."
    assert "Traceback" not in done.stderr


@pytest.mark.distributed
def test_two_ranks_end_with_equal_weights(whole: tuple[Path, str], script: Script, tmp_path: Path) -> None:
    flags = ("--max_train_steps", 8, "--train_batch_size", 4, "--use_ema", "--snr_gamma", 5.0, *STAGES)
    done = script.run(tmp_path / "out", *flags, *held_out(script), "--validation_prompts", "a", ranks=2)
    assert done.stdout.count("2 ranks end with bit-identical weights") == 1
    start, end = unet_tensors(script.model), unet_tensors(tmp_path / "out")
    assert sorted(start) == sorted(end)
    # Of the model that has not trained, two ranks say what one does, to the last bit.
    evaluations = [json.loads((folder / "held_out.json").read_text()) for folder in (whole[0], tmp_path / "out")]
    one, two = (values["evaluations"][0] for values in evaluations)
    assert {**one, "seconds": 0} == {**two, "seconds": 0}


@pytest.mark.slow
@pytest.mark.distributed
def test_two_killed_ranks_resume_bit_for_bit(script: Script, tmp_path: Path, unet_bytes: UnetBytes) -> None:
    flags = (*FLAGS, *STAGES, "--validation_prompts", "a")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, killed = tmp_path / "a" / "out", tmp_path / "b" / "out"
    script.run(whole, *flags, ranks=2)
    script.kill_after(killed, "checkpoint-3", *flags, ranks=2)
    done = script.run(killed, *flags, "--resume_from_checkpoint", "latest", ranks=2)
    assert "2 ranks end with bit-identical weights" in done.stdout
    assert unet_bytes(killed) == unet_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_on_images_from_disk_resumes_bit_for_bit(
    script: Script, tmp_path: Path, unet_bytes: UnetBytes, workers: int
) -> None:
    flags = (*FLAGS, *STAGES, "--no-cache_latents", "--dataloader_num_workers", workers, "--validation_prompts", "a")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, killed = tmp_path / "a" / "out", tmp_path / "b" / "out"
    script.run(whole, *flags)
    script.kill_after(killed, "checkpoint-3", *flags)
    script.run(killed, *flags, "--resume_from_checkpoint", "latest")
    assert unet_bytes(killed) == unet_bytes(whole)


@pytest.mark.slow
def test_accelerate_launch_runs_it_too(script: Script, tmp_path: Path, unet_bytes: UnetBytes) -> None:
    flags = ("--max_train_steps", 4, "--train_batch_size", 8, "--validation_prompts", "a")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    script.run(tmp_path / "a" / "out", *flags)
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += script.command(tmp_path / "b" / "out", flags)[1:]
    done = subprocess.run(command, env=script.environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert unet_bytes(tmp_path / "a" / "out") == unet_bytes(tmp_path / "b" / "out")
