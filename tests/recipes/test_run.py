"""The run that recipes share, in this process: what it refuses, and what it does where nothing is named."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from autoprog_diffusion.data.captioned import load_captioned_images
from autoprog_diffusion.data.emoji import emoji_dataset
from autoprog_diffusion.growth import ConfigError, GrowthError
from autoprog_diffusion.tasks.text_to_image_recipe import default_prompts, reference_row
from autoprog_diffusion.training.bucketing import check_resolution
from autoprog_diffusion.training.recipe_arguments import Arguments
from autoprog_diffusion.training.run import run

from ..tasks.tiny import parse, write_images
from .conftest import Script, load_recipe


RECIPE = load_recipe("finetune_sd").FinetuneSD()


BAD = {
    "batch": (("--train_batch_size", 25), "24 images, fewer than one batch of 25"),
    "model": (("--pretrained_model_name_or_path", "{tmp}"), "cannot be loaded as a Stable Diffusion pipeline"),
    "data": (("--train_data_dir", "{tmp}/nothing"), "nothing does not exist"),
    "both": (("--dataset_name", "x"), "are both given"),
    "column": (("--caption_column", "words"), "'words' is not a column"),
    "output": (("--output_dir", "{tmp}/file/out"), "cannot be written"),
    "8bit": (("--use_8bit_adam",), "needs bitsandbytes"),
    "plan": (("--growth_plan", "{tmp}/none.json"), "cannot read the growth plan"),
    "plan text": (("--growth_plan", "{tmp}/file"), "is not JSON"),
    "checkpoint": (("--resume_from_checkpoint", "checkpoint-5"), "checkpoint-5 is not a complete checkpoint"),
    "schedule": (("--lr_scheduler", "zigzag"), "zigzag"),
    "tracker": (("--report_to", "nonsense"), "nonsense"),
}


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(
    script: Script, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "8bit" and importlib.util.find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes is installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "file").write_text("not JSON")
    flags, message = BAD[name]
    flags = tuple(str(flag).replace("{tmp}", str(tmp_path)) for flag in flags)
    with pytest.raises(GrowthError, match=message):
        run(RECIPE, RECIPE.parse([*script.flags(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache"), *flags]))


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_folder_that_holds_a_run_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(GrowthError, match=r"already holds a run \(run\.json\)"):
        run(RECIPE, RECIPE.parse(["--pretrained_model_name_or_path", "/nowhere", "--output_dir", str(tmp_path)]))
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_corrupt_picture_stops_the_run_with_its_name(script: Script, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    (folder / "11.png").write_bytes(b"nothing")
    flags = ["--cache_dir", str(tmp_path / "cache"), "--max_train_steps", "4", "--validation_prompts", "a"]
    with pytest.raises(GrowthError, match=r"image 11 of the training set cannot be decoded \(.*11\.png\)"):
        run(RECIPE, RECIPE.parse([*script.flags(tmp_path / "out"), "--train_data_dir", str(folder), *flags]))


@pytest.mark.usefixtures("fresh_accelerate")
def test_reader_leaves_a_corrupt_picture_out_of_a_run(script: Script, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    (folder / "11.png").write_bytes(b"nothing")
    flags = ["--train_data_dir", str(folder), "--cache_dir", str(tmp_path / "cache"), "--corrupt", "skip"]
    args = RECIPE.parse([*script.flags(tmp_path / "out"), *flags, "--no-cache_latents", "--validation_prompts", "a"])
    trainer = RECIPE.get_ready(args, RECIPE.make_accelerator(args))
    batches = trainer.batches()
    rows = torch.cat([next(batches)["index"] for _ in range(23 // args.train.train_batch_size)])
    assert set(rows.tolist()) <= set(range(23))


def test_the_default_model_brings_its_flags_and_any_flag_wins() -> None:
    def resolved(*flags: str) -> Arguments:
        return RECIPE.parse(list(flags))

    default = resolved()
    assert (default.train.learning_rate, default.train.max_train_steps) == (5e-4, 640)
    assert (default.train.lr_scheduler, default.train.average) == ("constant_with_warmup", "auto")
    assert default.train.lr_warmup_steps == 50
    assert resolved("--learning_rate", "1e-5", "--use_ema").train.learning_rate == 1e-5
    assert resolved("--lr_scheduler", "cosine").train.lr_scheduler == "cosine"
    for named in (["--pretrained_model_name_or_path", "x"], ["--pretrained-model-name-or-path=x"]):
        assert resolved(*named).train == Arguments().train


def test_default_prompts_are_held_out_emoji_or_the_first_captions(script: Script, tmp_path: Path) -> None:
    held_out = emoji_dataset("openmoji", size=4, split="held_out")["text"][:]
    prompts = default_prompts(parse(), None)
    assert len(set(prompts)) == 12
    assert set(prompts) <= set(held_out)
    (label, images), *_ = reference_row(parse(), prompts, 16)
    assert label == "real"
    assert [image.size for image in images] == [(16, 16)] * 12
    args = parse("--train_data_dir", script.images)
    data = load_captioned_images(train_data_dir=str(script.images), resolution=64, cache_dir=str(tmp_path))
    assert default_prompts(args, data) == tuple(data["text"][:6])
    assert reference_row(args, prompts, 16) == []


def test_a_size_that_the_vae_cannot_divide_is_refused() -> None:
    for size, near in ((66, 64), (63, 64), (2, 4), (0, 4), (-64, 4), (47, 48)):
        with pytest.raises(ConfigError, match=rf"--resolution {size} is not a multiple of 4 .*: use {near}\."):
            check_resolution(size, 4)


def test_sizes_that_the_vae_divides_pass() -> None:
    for size in (4, 32, 64, 68):
        check_resolution(size, 4)
