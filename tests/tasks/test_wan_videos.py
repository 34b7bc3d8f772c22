"""Short videos for Wan: frames of animated pictures, latents with an axis of frames, and the pipeline's own calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import tyro
from accelerate import Accelerator
from PIL import Image

from autoprog_diffusion.data.captioned import load_captioned_images
from autoprog_diffusion.data.decode import undecoded
from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.frames import read_frames
from autoprog_diffusion.data.report import DataReport
from autoprog_diffusion.growth import ConfigError, GrowthScheduler
from autoprog_diffusion.tasks.arguments import FlowMatchingArguments, noise_settings
from autoprog_diffusion.tasks.flow_matching import FlowMatching, flow_family, load_flow
from autoprog_diffusion.training.build import make_latents
from autoprog_diffusion.training.recipe_arguments import Arguments
from autoprog_diffusion.training.samples import sampling, seeds

from .tiny import growth_of
from .tiny_families import MEAN, STD, build_wan, build_z_image
from .tiny_transformers import save


pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
FRAMES = 5  # two latents


def write_videos(folder: Path, count: int = 4, frames: int = 9) -> Path:
    """Save animated pictures of noise, without loss, with captions beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for index in range(count):
        pixels = random.integers(0, 256, (frames, 32, 32, 3), dtype=np.uint8)
        first, *rest = [Image.fromarray(frame) for frame in pixels]
        first.save(folder / f"{index}.webp", save_all=True, append_images=rest, lossless=True)
        (folder / f"{index}.txt").write_text(f"clip {'abcd'[index]}")
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    folder = write_videos(tmp_path_factory.mktemp("videos"))
    cache = str(tmp_path_factory.mktemp("cache"))
    return load_captioned_images(train_data_dir=str(folder), resolution=32, cache_dir=cache)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Wan 2.1, Wan 2.2 that is told the time of every token, and one that makes pictures."""
    root = tmp_path_factory.mktemp("wan")
    loaded = {
        "wan": load_flow(str(save(root / "wan", build_wan))),
        "wan22": load_flow(str(save(root / "wan22", build_wan, expand_timesteps=True))),
        "z_image": load_flow(str(save(root / "z_image", build_z_image))),
    }
    for pipeline in loaded.values():
        pipeline.transformer.eval()
    return loaded


@pytest.fixture
def new_task(
    pipelines: dict[str, Any],
    videos: datasets.Dataset,
    tmp_path: Path,
    new_accelerator: Callable[[Arguments], Accelerator],
) -> Callable[..., FlowMatching]:
    def make(kind: str, *flags: object, data: datasets.Dataset = videos) -> FlowMatching:
        words = ["--output_dir", tmp_path, "--num_stages", 1, "--max_sequence_length", 12, *flags]
        args = tyro.cli(FlowMatchingArguments, args=[str(word) for word in words])
        grown = build_wan().transformer
        growth = GrowthScheduler(grown, growth_of(args, 8)[0])
        growth.prepare(grown, num_training_steps=8)
        latents = make_latents(pipelines[kind], data, args, new_accelerator(args), resolution=32)
        task = FlowMatching(pipelines[kind], latents, args.flow, noise_settings(args))
        task.enter_stage(growth)
        return task

    return make


def test_frames_are_those_of_the_file_from_the_first_one_on(videos: datasets.Dataset) -> None:
    data = undecoded(videos)
    random = np.random.default_rng(0)
    for row in range(4):
        wanted = random.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
        frames = read_frames(data, row, FRAMES)
        assert [np.array(frame).tolist() for frame in frames] == wanted[:FRAMES].tolist()
    assert len(read_frames(data, 0, 1)) == 1


def test_a_picture_or_too_short_a_video_is_refused_by_name(data: datasets.Dataset, videos: datasets.Dataset) -> None:
    with pytest.raises(DataError, match=r"image 2 of the training set \(.*\) is a still picture, and"):
        read_frames(data, 2, FRAMES)
    with pytest.raises(DataError, match=r"image 1 .*1\.webp\) has 9 frames, and --num_frames asks for 13"):
        read_frames(videos, 1, 13)


@pytest.mark.parametrize("kind", ["wan", "wan22"])
@pytest.mark.parametrize("frames", [1, 5])
def test_the_velocity_is_what_the_pipeline_gives_its_scheduler(
    pipelines: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: str, frames: int
) -> None:
    pipeline = pipelines[kind]
    family = flow_family(pipeline, frames=frames)
    calls: list[Any] = []
    step = pipeline.scheduler.step

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return step(*args, **kwargs)

    monkeypatch.setattr(pipeline.scheduler, "step", spy)
    with sampling(pipeline):
        output = pipeline(
            prompt=["a b"], height=32, width=32, num_inference_steps=2, generator=seeds(0, 1),
            **family.drawing(1.0, 12),
        )  # fmt: skip
    assert len(output.frames[0]) == frames
    assert family.pictures(output)[0].size == (32, 32)
    with torch.no_grad():
        tokens, pooled = family.encode(["a b"], 12)
        for given, timestep, sample in calls:
            times = torch.tensor([float(timestep) / 1000])
            ours = family.predict(pipeline.transformer, sample, times, tokens=tokens, pooled=pooled)
            torch.testing.assert_close(ours, given, rtol=1e-4, atol=1e-5)


def test_the_loss_of_a_video_is_the_error_of_its_velocity(new_task: Callable[..., FlowMatching]) -> None:
    task = new_task("wan", "--num_frames", FRAMES, "--weighting_scheme", "none")
    pipeline = task.pipeline
    rows = [0, 3]
    with torch.no_grad():
        torch.manual_seed(4)
        loss = task.loss(pipeline.transformer, {"index": torch.tensor(rows)})
        torch.manual_seed(4)
        clips = [read_frames(task.latents.data, row, FRAMES) for row in rows]
        arrays = np.array([[np.array(frame) for frame in clip] for clip in clips])
        pixels = torch.from_numpy(arrays).permute(0, 4, 1, 2, 3) / 127.5 - 1
        found = pipeline.vae.encode(pixels).latent_dist
        mean, std = (torch.tensor(value).view(1, 4, 1, 1, 1) for value in (MEAN, STD))
        latents = (found.mean + found.std * torch.randn(found.mean.shape) - mean) / std
        assert latents.shape == (2, 4, 2, 8, 8)
        noise = torch.randn(latents.shape)
        places = 1 - torch.rand(2).clamp(max=1 - 1e-3)
        sigmas = 3 * places / (1 + 2 * places)
        mix = sigmas.view(-1, 1, 1, 1, 1)
        captions = [task.latents.data[row]["text"] for row in rows]
        text, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=12)
        velocity = pipeline.transformer(
            (1 - mix) * latents + mix * noise, timestep=1000 * sigmas, encoder_hidden_states=text, return_dict=False
        )[0]
    torch.testing.assert_close(loss, (velocity - (noise - latents)).square().mean(), rtol=1e-4, atol=1e-5)


def test_pictures_and_videos_have_caches_of_their_own(new_task: Callable[..., FlowMatching], tmp_path: Path) -> None:
    batch = {"index": torch.tensor([1])}
    assert new_task("wan").latents.draw(batch).shape == (1, 4, 1, 8, 8)
    assert new_task("wan", "--num_frames", 9).latents.draw(batch).shape == (1, 4, 3, 8, 8)
    names = {path.name for path in (tmp_path / "cache").glob("latents*.npy")}
    assert names == {"latents-32.npy", "latents-32-of-9-frames.npy"}


def test_what_does_not_fit_is_refused(new_task: Callable[..., FlowMatching], data: datasets.Dataset) -> None:
    with pytest.raises(ConfigError, match="--num_frames 5 is not allowed: a ZImagePipeline makes pictures"):
        new_task("z_image", "--num_frames", 5)
    with pytest.raises(ConfigError, match="--num_frames 6 is not allowed: .* one frame and 4 for every .* Use 5"):
        new_task("wan", "--num_frames", 6)
    with pytest.raises(ConfigError, match="--num_frames -1 is not allowed: .* Use 1"):
        new_task("wan", "--num_frames", -1)
    with pytest.raises(ConfigError, match="--no-cache_latents is not possible with --num_frames"):
        new_task("wan", "--num_frames", 5, "--no-cache_latents")
    with pytest.raises(DataError, match="image 0 of the training set .* is a still picture"):
        new_task("wan", "--num_frames", 5, data=data)


def test_a_video_beside_pictures_is_counted_as_one(tmp_path: Path) -> None:
    folder = write_videos(tmp_path / "videos", count=1)
    (folder / "clip.MP4").write_bytes(b"moov")
    (folder / "notes.pdf").write_bytes(b"%PDF")
    report = DataReport()
    load_captioned_images(train_data_dir=str(folder), resolution=32, cache_dir=str(tmp_path / "cache"), report=report)
    (line,) = [reading.line() for reading in report.readings]
    assert "found 3, trained on 1, left out 2: 1 a video (of animations" in line
    assert "1 not an image" in line
