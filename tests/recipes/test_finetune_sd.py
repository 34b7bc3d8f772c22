"""The fine-tuning script, run as users run it: in processes of its own, killed and started again."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file

from autoprog_diffusion.finetune.arguments import Arguments
from autoprog_diffusion.growth import GrowthError, GrowthPlan

from ..finetune.tiny import parse, write_images
from .conftest import SCRIPT, Script


UnetBytes = Callable[[Path], bytes]

# 24 images are 3 steps of 2 batches of 4: the run crosses two epochs. Everything that has a state is on.
FLAGS = (
    "--max_train_steps", 8, "--train_batch_size", 4, "--gradient_accumulation_steps", 2, "--random_flip",
    "--use_ema", "--ema_decay", 0.7, "--lr_scheduler", "cosine", "--lr_warmup_steps", 2, "--snr_gamma", 5.0,
    "--learning_rate", 1e-3, "--checkpointing_steps", 3, "--gradient_checkpointing", "--noise_offset", 0.05,
)  # fmt: skip
STAGES = ("--resolutions", 0.5, 0.5, 1, 1, "--stage_embedding_init", "normal")
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
    done = script.run(output, *FLAGS, *STAGES, *PICTURES, "--report_to", "tensorboard")
    return output, done.stdout


def unet_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_a_run_leaves_what_the_readme_promises(whole: tuple[Path, str]) -> None:
    output, printed = whole
    for name in ("before_after.png", "timeline.png", "validation-4.png", "validation-8.png"):
        pixels = np.asarray(Image.open(output / name).convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10, name
    assert [path.name for path in sorted((output / "checkpoints").iterdir())] == ["checkpoint-3", "checkpoint-6"]
    assert list((output / "logs").rglob("events.out.tfevents.*"))
    assert not (output / "stage_embedding.safetensors").exists()
    assert not list(output.rglob("*.tmp"))
    assert "progressive fine-tuning, stage by stage" in printed
    assert len([line for line in printed.splitlines() if line.startswith("│")]) == 4
    assert json.loads((output / "run.json").read_text())["train"]["max_train_steps"] == 8


def test_growth_json_tells_the_run(whole: tuple[Path, str]) -> None:
    output, _ = whole
    plan = GrowthPlan.load(output / "growth.json")
    assert plan == GrowthPlan.load(output / "growth_plan.json")
    assert [stage.start for stage in plan.stages] == [0, 2, 4, 6]
    assert [stage.resolution for stage in plan.stages] == [0.5, 0.5, 1.0, 1.0]
    assert plan.num_blocks == len(plan.stages[-1].blocks) == 10
    values = json.loads((output / "growth.json").read_text())
    assert [row["steps"] for row in values["stages"]] == [2, 2, 2, 2]
    assert values["saving_against_full"]["flops"] > 1.2
    assert [(row["stage"], row["step"]) for row in values["history"]] == [(0, 0), (1, 2), (2, 4), (3, 6)]


def test_the_pipeline_is_loaded_by_diffusers_alone(whole: tuple[Path, str], script: Script) -> None:
    output, _ = whole
    command = [sys.executable, "-c", VANILLA, str(output)]
    done = subprocess.run(command, env=script.environment, capture_output=True, text=True, timeout=300, check=False)
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
    flags = (*FLAGS, *STAGES, *PICTURES)
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


def test_the_plan_of_a_run_gives_the_same_run(
    whole: tuple[Path, str], script: Script, tmp_path: Path, unet_bytes: UnetBytes
) -> None:
    flags = (*FLAGS, "--stage_embedding_init", "normal", "--growth_plan", whole[0] / "growth.json")
    script.run(tmp_path / "out", *flags)
    assert unet_bytes(tmp_path / "out") == unet_bytes(whole[0])


def test_suffix_growth_with_dropped_stages_and_images_from_disk(script: Script, tmp_path: Path) -> None:
    output = tmp_path / "out"
    script.run(
        output, "--max_train_steps", 4, "--train_batch_size", 8, "--order", "suffix", "--stage_dropout", 0.1,
        "--no-cache_latents", "--dataloader_num_workers", 1, "--validation_prompts", "a",
    )  # fmt: skip
    plan = GrowthPlan.load(output / "growth.json")
    assert plan.stages[0].blocks == (7, 8, 9)
    table = load_file(output / "stage_embedding.safetensors")
    assert any(tensor.shape[0] >= 4 for tensor in table.values())
    assert sorted(unet_tensors(output)) == sorted(unet_tensors(script.model))
    assert not list((output / "cache").glob("latents*"))


def test_bad_input_ends_with_one_line_and_no_traceback(script: Script, tmp_path: Path) -> None:
    done = script.run(tmp_path / "out", "--resolution", 66, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "error: --resolution 66 is not a multiple of 4 (the VAE's factor): use 64."
    assert "Traceback" not in done.stderr


@pytest.mark.distributed
def test_two_ranks_end_with_equal_weights(script: Script, tmp_path: Path) -> None:
    flags = ("--max_train_steps", 8, "--train_batch_size", 4, "--resolutions", 0.5, 0.5, 1, 1, "--use_ema")
    done = script.run(tmp_path / "out", *flags, "--validation_prompts", "a", ranks=2)
    assert done.stdout.count("2 ranks end with bit-identical weights") == 1
    start, end = unet_tensors(script.model), unet_tensors(tmp_path / "out")
    assert sorted(start) == sorted(end)


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
    done = subprocess.run(command, env=script.environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert unet_bytes(tmp_path / "a" / "out") == unet_bytes(tmp_path / "b" / "out")


# The rest runs the script's functions in this process.


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("finetune_sd_under_test", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def _fresh_accelerate() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


BAD = {
    "batch": (("--train_batch_size", 25), "24 images, fewer than one batch of 25"),
    "model": (("--pretrained_model_name_or_path", "{tmp}"), "cannot be loaded as a Stable Diffusion pipeline"),
    "data": (("--train_data_dir", "{tmp}/nothing"), "nothing is not a folder with files in it"),
    "both": (("--dataset_name", "x"), "are both given"),
    "column": (("--caption_column", "words"), "'words' is not a column"),
    "output": (("--output_dir", "{tmp}/file/out"), "cannot be written"),
    "8bit": (("--use_8bit_adam",), "needs bitsandbytes"),
    "plan": (("--growth_plan", "{tmp}/none.json"), "cannot read the growth plan"),
    "plan text": (("--growth_plan", "{tmp}/file"), "is not JSON"),
    "stages": (("--num_stages", 20), "stage"),
    "short": (("--max_train_steps", 2), "num_training_steps=2 is shorter than num_stages=4"),
    "checkpoint": (("--resume_from_checkpoint", "checkpoint-5"), "checkpoint-5 is not a complete checkpoint"),
    "schedule": (("--lr_scheduler", "zigzag"), "zigzag"),
    "tracker": (("--report_to", "nonsense"), "nonsense"),
}


@pytest.mark.usefixtures("_fresh_accelerate")
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(
    recipe: ModuleType, script: Script, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "8bit" and importlib.util.find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes is installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "file").write_text("not JSON")
    flags, message = BAD[name]
    flags = tuple(str(flag).replace("{tmp}", str(tmp_path)) for flag in flags)
    with pytest.raises(GrowthError, match=message):
        recipe.main([*script.flags(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache"), *flags])


@pytest.mark.usefixtures("_fresh_accelerate")
def test_a_folder_that_holds_a_run_is_refused_before_anything_is_loaded(recipe: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(GrowthError, match=r"already holds a run \(run\.json\)"):
        recipe.main(["--pretrained_model_name_or_path", "/nowhere", "--output_dir", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.usefixtures("_fresh_accelerate")
def test_a_corrupt_picture_stops_the_run_with_its_name(recipe: ModuleType, script: Script, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    (folder / "11.png").write_bytes(b"nothing")
    flags = ["--cache_dir", str(tmp_path / "cache"), "--max_train_steps", "4", "--validation_prompts", "a"]
    with pytest.raises(GrowthError, match=r"image 11 of the training set cannot be decoded \(.*11\.png\)"):
        recipe.main([*script.flags(tmp_path / "out"), "--train_data_dir", str(folder), *flags])


def test_the_default_model_brings_its_flags_and_any_flag_wins(recipe: ModuleType) -> None:
    def resolved(*flags: str) -> Arguments:
        return parse(*recipe.with_defaults(list(flags)))

    default = resolved()
    assert (default.train.learning_rate, default.train.max_train_steps) == (5e-4, 1200)
    assert default.train.use_ema is True
    assert resolved("--learning_rate", "1e-5", "--no-use_ema").train.learning_rate == 1e-5
    assert resolved("--no-use_ema").train.use_ema is False
    for named in (["--pretrained_model_name_or_path", "x"], ["--pretrained-model-name-or-path=x"]):
        assert resolved(*named).train == Arguments().train
        assert recipe.with_defaults(named) == named


def test_default_prompts_are_held_out_emoji_or_the_first_captions(
    recipe: ModuleType, script: Script, tmp_path: Path
) -> None:
    from autoprog_diffusion.finetune.emoji import emoji_dataset
    from autoprog_diffusion.finetune.images import load_captioned_images

    held_out = emoji_dataset("openmoji", size=4, split="held_out")["text"][:]
    prompts = recipe.default_prompts(parse(), None)
    assert len(set(prompts)) == 12
    assert set(prompts) <= set(held_out)
    (label, images), *_ = recipe.reference_row(parse(), prompts, 16)
    assert label == "real"
    assert [image.size for image in images] == [(16, 16)] * 12
    args = parse("--train_data_dir", script.images)
    data = load_captioned_images(args.data, 64, str(tmp_path))
    assert recipe.default_prompts(args, data) == tuple(data["text"][:6])
    assert recipe.reference_row(args, prompts, 16) == []
