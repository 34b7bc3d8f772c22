"""The SDXL task: what the UNet is told, against the literal script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from autoprog_diffusion.growth import GrowthError, GrowthScheduler
from autoprog_diffusion.tasks.arguments import noise_settings
from autoprog_diffusion.tasks.sdxl import TextToImageXL, load_sdxl
from autoprog_diffusion.tasks.stable_diffusion import load_pipeline
from autoprog_diffusion.training.build import make_latents, make_loader
from autoprog_diffusion.training.recipe_arguments import Arguments

from .tiny import build_sdxl, growth_of, parse


SIZES = [(40, 32), (32, 40), (64, 64), (200, 50), (31, 33), (48, 32)]  # width, height
NewTask = Callable[..., tuple[TextToImageXL, GrowthScheduler]]


@pytest.fixture(scope="module")
def sdxl_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def odd_sizes() -> datasets.Dataset:
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)) for width, height in SIZES]
    return datasets.Dataset.from_dict({"image": images, "text": [f"picture {letter}" for letter in "abcdea"]})


@pytest.fixture
def new_task(
    sdxl_dir: Path, odd_sizes: datasets.Dataset, tmp_path: Path, new_accelerator: Callable[[Arguments], Accelerator]
) -> NewTask:
    def make(*flags: object, empty: float = 0.0) -> tuple[TextToImageXL, GrowthScheduler]:
        args = parse("--output_dir", tmp_path / "out", "--num_stages", 2, "--direction", "unfreeze", *flags)
        pipeline = load_sdxl(str(sdxl_dir))
        growth = GrowthScheduler(pipeline.unet, growth_of(args, 4)[0])
        growth.prepare(pipeline.unet, num_training_steps=2)
        latents = make_latents(pipeline, odd_sizes, args, new_accelerator(args), resolution=64)
        return TextToImageXL(pipeline, latents, noise_settings(args), empty=empty), growth

    return make


def test_the_text_is_the_script_s(new_task: NewTask) -> None:
    task, growth = new_task()
    task.enter_stage(growth)
    rows = torch.tensor([4, 0, 5])
    told = task.conditions({"index": rows})
    pipeline: Any = task.pipeline
    parts = []
    for tokenizer, encoder in (
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        ids = tokenizer(
            task.latents.data[rows.tolist()]["text"],
            padding="max_length",
            max_length=16,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        with torch.no_grad():
            output = encoder(ids, output_hidden_states=True)
        parts.append(output.hidden_states[-2])
    torch.testing.assert_close(told["encoder_hidden_states"], torch.cat(parts, dim=-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(told["added_cond_kwargs"]["text_embeds"], output.text_embeds, rtol=1e-4, atol=1e-5)
    assert told["added_cond_kwargs"]["text_embeds"].shape == (3, 32)


def test_sizes_of_cached_images_follow_the_stage(new_task: NewTask) -> None:
    task, growth = new_task("--resolutions", 0.5, 1)
    for side in (32, 64):
        task.enter_stage(growth)
        time_ids = task.conditions({"index": torch.arange(6)})["added_cond_kwargs"]["time_ids"]
        for (width, height), row in zip(SIZES, time_ids.tolist()):
            scale = side / min(width, height)
            crop = [(round(length * scale) - side) // 2 for length in (height, width)]
            assert row == [height, width, *crop, side, side]
        growth.step()


def test_sizes_of_images_from_disk_are_those_of_their_random_crop(new_task: NewTask) -> None:
    flags = ("--no-cache_latents", "--random_flip", "--train_batch_size", 6)
    task, growth = new_task("--resolutions", 0.5, 1, *flags)
    task.enter_stage(growth)
    loader = make_loader(task.latents.data, parse(*flags), 64)
    batch = next(iter(loader))
    time_ids = task.conditions(batch)["added_cond_kwargs"]["time_ids"]
    assert torch.equal(time_ids[:, 4:], torch.full((6, 2), 32.0))
    seen = set()
    for index, (height, width, top, left) in zip(batch["index"].tolist(), time_ids[:, :4].tolist()):
        assert (width, height) == SIZES[index]
        scale = 64 / min(width, height)
        shown = task.latents.data[index]["image"].resize(
            (round(width * scale), round(height * scale)), Image.Resampling.LANCZOS
        )
        pixels = np.asarray(shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT), dtype=np.float32)
        for mirrored in (False, True):
            whole = pixels if mirrored else pixels[:, ::-1]
            crop = whole[int(2 * top) : int(2 * top) + 64, int(2 * left) : int(2 * left) + 64] / 127.5 - 1
            if np.allclose(crop, batch["pixel_values"][batch["index"] == index][0].permute(1, 2, 0), atol=1e-6):
                seen.add((index, mirrored))
    assert {index for index, _ in seen} == set(range(6))
    assert {mirrored for _, mirrored in seen} == {False, True}


def test_a_share_of_the_captions_is_dropped(new_task: NewTask) -> None:
    task, growth = new_task(empty=0.5)
    task.enter_stage(growth)
    with torch.no_grad():
        nothing = task.encode([""])[0][0]
    tokens = task.conditions({"index": torch.zeros(200, dtype=torch.long)})["encoder_hidden_states"]
    share = [torch.allclose(row, nothing, atol=1e-5) for row in tokens]
    assert 60 < sum(share) < 140


def test_the_loss_depends_on_the_sizes(new_task: NewTask) -> None:
    task, growth = new_task()
    task.enter_stage(growth)
    losses = []
    for scale in (1.0, 10.0):
        torch.manual_seed(0)
        told = task.sizes
        task.sizes = lambda batch, told=told, scale=scale: scale * told(batch)  # type: ignore[method-assign]
        losses.append(float(task.loss(task.pipeline.unet, {"index": torch.arange(4)}).detach()))
    assert losses[0] != losses[1]


@pytest.mark.parametrize("empty", [-0.1, 1.5])
def test_a_probability_out_of_range_is_refused(new_task: NewTask, empty: float) -> None:
    with pytest.raises(GrowthError, match=f"--proportion_empty_prompts {empty} is not allowed"):
        new_task(empty=empty)


def test_stable_diffusion_and_xl_are_told_apart(sdxl_dir: Path, pipeline_dir: Path) -> None:
    with pytest.raises(GrowthError, match=r"says StableDiffusionXLPipeline.*use recipes/finetune_sdxl\.py"):
        load_pipeline(str(sdxl_dir))
    with pytest.raises(GrowthError, match=r"says StableDiffusionPipeline.*use recipes/finetune_sd\.py"):
        load_sdxl(str(pipeline_dir))


def test_long_texts_are_counted_for_both_encoders(
    new_task: NewTask, odd_sizes: datasets.Dataset, capsys: pytest.CaptureFixture
) -> None:
    task, _ = new_task()
    assert "tokens that" not in capsys.readouterr().out
    long = odd_sizes.map(lambda row: {"text": row["text"] * 3}, load_from_cache_file=False)
    latents = task.latents
    args = parse("--output_dir", latents.folder.parent, "--num_stages", 1)
    TextToImageXL(
        task.pipeline,
        make_latents(task.pipeline, long, args, latents.accelerator, resolution=64),
        noise_settings(args),
    )
    said = capsys.readouterr().out
    for part in ("tokenizer", "tokenizer_2"):
        assert f"5 of 5 captions have more than the 16 tokens that {part} keeps: they are cut there" in said
