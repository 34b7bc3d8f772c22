"""DreamBooth: the subject's and the class's pictures, and the loss on both."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import tyro
from accelerate import Accelerator
from datasets import concatenate_datasets
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

from autoprog_diffusion.growth import GrowthError, GrowthScheduler
from autoprog_diffusion.tasks.arguments import DreamboothArguments, noise_settings
from autoprog_diffusion.tasks.dreambooth import (
    Dreambooth,
    SubjectSettings,
    check_subject,
    default_subject,
    draw_class_images,
    images_of,
    list_images,
    pair_up,
)
from autoprog_diffusion.training.build import make_latents, make_loader
from autoprog_diffusion.training.recipe_arguments import Arguments

from .tiny import growth_of


NewAccelerator = Callable[[Arguments], Accelerator]
PRIOR = ("--instance_prompt", "sks cat", "--with_prior_preservation", "--class_prompt", "cat")


def arguments(*flags: object) -> DreamboothArguments:
    return tyro.cli(DreamboothArguments, args=[str(flag) for flag in flags])


def write(folder: Path, count: int, colour: str = "red") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", (32 + index, 40), colour).save(folder / f"{colour}-{index}.png")
    return folder


def test_a_class_folder_that_is_a_file_is_refused(
    pipeline: StableDiffusionPipeline, tmp_path: Path, new_accelerator: NewAccelerator
) -> None:
    (tmp_path / "file").write_text("")
    args = arguments("--output_dir", tmp_path / "out", *PRIOR)
    with pytest.raises(GrowthError, match=r"--class_data_dir .*file cannot be written"):
        draw_class_images(
            pipeline,
            tmp_path / "file",
            new_accelerator(args),
            args.subject,
            size=32,
            steps=2,
            guidance=2.0,
            seed=0,
        )


BAD = {
    "no prompt": ((), "--instance_prompt is missing"),
    "no class": (("--instance_prompt", "a", "--with_prior_preservation"), "needs --class_prompt"),
    "idle folder": (("--instance_prompt", "a", "--class_data_dir", "x"), "--class_data_dir does nothing without"),
    "idle prompt": (("--instance_prompt", "a", "--class_prompt", "x"), "--class_prompt does nothing without"),
    "no images": ((*PRIOR, "--num_class_images", 0), "--num_class_images 0 is not allowed"),
    "no samples": ((*PRIOR, "--sample_batch_size", -1), "--sample_batch_size -1 is not allowed"),
    "weight": ((*PRIOR, "--prior_loss_weight", -0.5), "--prior_loss_weight -0.5 is not allowed"),
    "nan": ((*PRIOR, "--prior_loss_weight", "nan"), "--prior_loss_weight nan is not allowed"),
}


def test_arguments_that_do_not_fit_together_are_refused() -> None:
    for name in BAD:
        flags, message = BAD[name]
        with pytest.raises(GrowthError, match=message):
            check_subject(arguments(*flags).subject)


def test_arguments_that_fit_pass() -> None:
    check_subject(SubjectSettings(instance_prompt="sks cat"))
    check_subject(arguments(*PRIOR, "--class_data_dir", "x", "--prior_loss_weight", 0).subject)


def test_a_folder_s_images_are_listed_by_name(tmp_path: Path) -> None:
    write(tmp_path, 3)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "deeper").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "A.JPG")
    assert [path.name for path in list_images(tmp_path, "x")] == ["A.JPG", "red-0.png", "red-1.png", "red-2.png"]
    with pytest.raises(GrowthError, match="--x .*deeper holds no image file"):
        list_images(tmp_path / "deeper", "x")
    with pytest.raises(GrowthError, match=r"--x .*notes\.txt is not a folder"):
        list_images(tmp_path / "notes.txt", "x")


def test_a_changed_picture_changes_the_data(tmp_path: Path) -> None:
    files = list_images(write(tmp_path, 2), "x")
    data = images_of(files, "sks cat")
    assert data["text"][:] == ["sks cat", "sks cat"]
    assert data[1]["image"].size == (33, 40)
    assert images_of(files, "sks cat")._fingerprint == data._fingerprint
    Image.new("RGB", (9, 9)).save(files[1])
    assert images_of(files, "sks cat")._fingerprint != data._fingerprint


def test_the_class_s_pictures_that_lack_are_drawn_and_the_same_after_a_kill(
    pipeline: StableDiffusionPipeline, tmp_path: Path, new_accelerator: NewAccelerator
) -> None:
    flags = ("--output_dir", tmp_path / "out", "--sample_batch_size", 2)
    args = arguments(*flags, *PRIOR, "--num_class_images", 5)
    accelerator, state = new_accelerator(args), torch.get_rng_state()

    def draw(folder: Path) -> dict[str, bytes]:
        files = draw_class_images(pipeline, folder, accelerator, args.subject, size=32, steps=2, guidance=2.0, seed=0)
        return {path.name: path.read_bytes() for path in files}

    whole = draw(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(whole) == [f"generated-{number:05d}.png" for number in range(5)]
    assert len(set(whole.values())) == 5  # a seed each
    assert {Image.open(tmp_path / "a" / name).convert("RGB").size for name in whole} == {(32, 32)}
    for name in ("generated-00001.png", "generated-00004.png"):
        (tmp_path / "a" / name).unlink()
    (tmp_path / "a" / "generated-00001.png.tmp").write_bytes(b"half")
    assert draw(tmp_path / "a") == whole
    write(tmp_path / "b", 3, "blue")  # the user's own come first
    assert sorted(draw(tmp_path / "b")) == sorted(
        ["blue-0.png", "blue-1.png", "blue-2.png", "generated-00000.png", "generated-00001.png"]
    )
    write(tmp_path / "c", 7, "blue")
    assert len(draw(tmp_path / "c")) == 5


def test_every_picture_of_the_more_is_paired_once() -> None:
    assert pair_up(2, 5) == [(0, 2), (1, 3), (0, 4), (1, 5), (0, 6)]
    assert pair_up(3, 2) == [(0, 3), (1, 4), (2, 3)]


@pytest.mark.parametrize("cached", [True, False])
def test_the_loss_is_the_subject_s_and_the_weighted_class_s(
    pipeline: StableDiffusionPipeline, tmp_path: Path, new_accelerator: NewAccelerator, cached: bool
) -> None:
    losses: dict[float, float] = {}
    unet = pipeline.unet
    subject = images_of(list_images(write(tmp_path / "a", 2), "x"), "sks cat")
    data = concatenate_datasets([subject, images_of(list_images(write(tmp_path / "b", 3, "blue"), "x"), "cat")])
    for weight in (0.0, 1.0, 3.0):
        flags = ("--output_dir", tmp_path / "out", "--prior_loss_weight", weight, "--direction", "unfreeze")
        args = arguments(
            *flags, *PRIOR, "--train_batch_size", 3, "--cache_latents" if cached else "--no-cache_latents"
        )
        pipeline.unet = copy.deepcopy(unet)
        growth = GrowthScheduler(pipeline.unet, growth_of(args, 4)[0])
        growth.prepare(pipeline.unet, num_training_steps=8)
        latents = make_latents(pipeline, data, args, new_accelerator(args), resolution=64)
        task = Dreambooth(pipeline, latents, noise_settings(args), prior_loss_weight=weight)
        task.enter_stage(growth)
        batch = next(iter(make_loader(data, args, 64, pair_up(2, 3))))
        assert batch["index"].shape == (3, 2)
        assert sorted(batch["index"][:, 1].tolist()) == [2, 3, 4]
        seen: list[torch.Tensor] = []
        handle = pipeline.unet.register_forward_hook(
            lambda module, args, kwargs, output, seen=seen: seen.append(kwargs["encoder_hidden_states"]),
            with_kwargs=True,
        )
        torch.manual_seed(0)
        losses[weight] = float(task.loss(pipeline.unet, batch).detach())
        handle.remove()
        assert seen[0].shape[0] == 6
        for half in seen[0].chunk(2):
            assert torch.equal(half, half[:1].expand_as(half))  # one prompt each
        assert not torch.equal(seen[0][0], seen[0][3])
    assert losses[1.0] > losses[0.0]
    assert losses[3.0] - losses[0.0] == pytest.approx(3 * (losses[1.0] - losses[0.0]), rel=1e-4)


def test_the_default_subject_is_a_blue_cat(tmp_path: Path, new_accelerator: NewAccelerator) -> None:
    files = default_subject(tmp_path / "cat", 16, new_accelerator(arguments("--output_dir", tmp_path)))
    assert len(files) == 6
    red, _, blue = Image.open(files[0]).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))  # type: ignore[misc]
    assert blue > red + 30
