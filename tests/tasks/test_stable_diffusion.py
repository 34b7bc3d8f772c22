from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import torch
from accelerate import Accelerator
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

from autoprog_diffusion.data.captioned import load_captioned_images
from autoprog_diffusion.data.decode import read_image
from autoprog_diffusion.data.images import to_pixels
from autoprog_diffusion.data.placement import hold_as_stored, on_device
from autoprog_diffusion.growth import GrowthError, GrowthScheduler
from autoprog_diffusion.tasks.arguments import noise_settings
from autoprog_diffusion.tasks.noise_schedule import training_scheduler
from autoprog_diffusion.tasks.stable_diffusion import TextToImage, load_pipeline
from autoprog_diffusion.training.build import make_latents
from autoprog_diffusion.training.recipe_arguments import Arguments
from autoprog_diffusion.training.samples import sample_images

from .tiny import COUNT, growth_of, parse, write_images


NewAccelerator = Callable[[Arguments], Accelerator]


@pytest.fixture
def new_task(
    pipeline: StableDiffusionPipeline, data: datasets.Dataset, tmp_path: Path, new_accelerator: NewAccelerator
) -> Callable[..., tuple[TextToImage, GrowthScheduler]]:
    """A task and its growth in stage 0 of two stages of 4 steps each; every call has a UNet of its own."""
    unet = copy.deepcopy(pipeline.unet)

    def make(*flags: object, data: datasets.Dataset = data) -> tuple[TextToImage, GrowthScheduler]:
        args = parse("--output_dir", tmp_path / "out", "--num_stages", 2, "--direction", "unfreeze", *flags)
        pipeline.unet = copy.deepcopy(unet)  # as a new process would
        growth = GrowthScheduler(pipeline.unet, growth_of(args, 4)[0])
        growth.prepare(pipeline.unet, num_training_steps=8)
        latents = make_latents(pipeline, data, args, new_accelerator(args), resolution=64)
        return TextToImage(pipeline, latents, noise_settings(args)), growth

    return make


def encode(task: TextToImage, index: int, side: int, flip: bool = False) -> torch.Tensor:
    """The literal posterior moments of one image, without the cache."""
    pixels = to_pixels(read_image(task.latents.data, index), side, task.latents.images)
    with torch.no_grad():
        posterior = task.pipeline.vae.encode((pixels.flip(-1) if flip else pixels)[None]).latent_dist
    return torch.cat([posterior.mean, posterior.logvar], dim=1)[0]


def test_cached_latents_are_the_vae_s(new_task: Callable) -> None:
    task, growth = new_task()
    task.enter_stage(growth)
    rows = torch.tensor([5, 0, 23])
    cached = task.latents._caches[0][rows]
    assert cached.shape == (3, 8, 16, 16)
    for row, moments in zip(rows.tolist(), cached):
        torch.testing.assert_close(moments, encode(task, row, 64), rtol=1e-4, atol=1e-4)


def test_cached_text_is_the_text_encoder_s(new_task: Callable) -> None:
    task, growth = new_task()
    task.enter_stage(growth)
    for index in (0, 7, 23):
        ids = task.pipeline.tokenizer(
            task.latents.data[index]["text"], padding="max_length", max_length=16, truncation=True, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            literal = task.pipeline.text_encoder(ids)[0][0]
        torch.testing.assert_close(task.captions.draw(torch.tensor([index]))[0][0], literal, rtol=1e-4, atol=1e-5)


def test_equal_captions_are_encoded_once(new_task: Callable, data: datasets.Dataset, tmp_path: Path) -> None:
    same = data.select(range(6)).remove_columns("text").add_column("text", ["b", "a", "b", "b", "a", "b"])
    task, growth = new_task(data=same)
    task.enter_stage(growth)
    assert task.captions._places.tolist() == [1, 0, 1, 1, 0, 1]
    assert task.captions._cache is not None
    assert len(task.captions._cache.array) == 2


def test_every_stage_resolution_has_its_own_latents(new_task: Callable, tmp_path: Path) -> None:
    task, growth = new_task("--resolutions", 0.5, 1)
    task.enter_stage(growth)
    assert task.latents._caches[0][torch.tensor([3])].shape == (1, 8, 8, 8)
    torch.testing.assert_close(
        task.latents._caches[0][torch.tensor([3])][0], encode(task, 3, 32), rtol=1e-4, atol=1e-4
    )
    for _ in range(4):
        growth.step()
    task.enter_stage(growth)
    torch.testing.assert_close(
        task.latents._caches[0][torch.tensor([3])][0], encode(task, 3, 64), rtol=1e-4, atol=1e-4
    )
    names = sorted(path.name for path in (tmp_path / "out" / "cache").glob("*.npy"))
    assert names == ["latents-32.npy", "latents-64.npy", "text.npy"]


def test_rows_past_the_data_are_mirrored_and_both_are_drawn(new_task: Callable) -> None:
    task, growth = new_task("--random_flip")
    task.enter_stage(growth)
    plain, mirrored = task.latents._caches[0][torch.tensor([4, COUNT + 4])]
    torch.testing.assert_close(mirrored, encode(task, 4, 64, flip=True), rtol=1e-4, atol=1e-4)
    assert (plain - mirrored).abs().max() > 0.01
    batch = {"index": torch.full((40,), 4)}
    latents = task.latents.draw(batch) / task.pipeline.vae.config.scaling_factor
    near = [min(((one - m[:4]).square().mean().item(), k) for k, m in enumerate((plain, mirrored))) for one in latents]
    assert 8 < sum(k for _, k in near) < 32


def test_a_changed_vae_image_or_filter_is_encoded_anew(new_task: Callable, tmp_path: Path) -> None:
    path = tmp_path / "out" / "cache" / "latents-64.npy"

    def written(*flags: object, change: Callable[[TextToImage], None] | None = None, **more: object) -> int:
        task, growth = new_task(*flags, **more)
        if change is not None:
            change(task)
        task.enter_stage(growth)
        return path.stat().st_ctime_ns

    first = written()
    assert written() == first
    second = written("--image_interpolation_mode", "nearest")
    assert second > first

    def shift(task: TextToImage) -> None:
        task.pipeline.vae.quant_conv.bias.data += 1

    third = written("--image_interpolation_mode", "nearest", change=shift)
    assert third > second
    assert written("--image_interpolation_mode", "nearest") == third  # the fixture's pipeline keeps the shift


def test_a_replaced_picture_is_encoded_anew(new_task: Callable, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "data", 6)
    seen = []
    for colour in (None, "red"):
        if colour:
            Image.new("RGB", (40, 32), colour).save(folder / "02.png")
        task, growth = new_task(
            data=load_captioned_images(train_data_dir=str(folder), resolution=64, cache_dir=str(tmp_path / "datasets"))
        )
        task.enter_stage(growth)
        seen.append(task.latents._caches[0][torch.tensor([2])])
    torch.testing.assert_close(seen[1][0], encode(task, 2, 64), rtol=1e-4, atol=1e-4)
    assert not torch.equal(seen[0], seen[1])


def test_latents_are_drawn_from_the_posterior(new_task: Callable) -> None:
    task, growth = new_task()
    task.enter_stage(growth)
    batch = {"index": torch.full((400,), 9)}
    latents = task.latents.draw(batch)
    assert latents.shape == (400, 4, 16, 16)
    mean, logvar = encode(task, 9, 64).chunk(2)
    scale = task.pipeline.vae.config.scaling_factor
    assert latents.mean(0).sub(mean * scale).abs().mean() < 0.1 * scale
    ratio = latents.std(0) / (torch.exp(0.5 * logvar) * scale)
    assert ratio.mean().item() == pytest.approx(1.0, abs=0.02)


def test_uncached_images_are_resized_to_the_stage_before_the_vae(new_task: Callable) -> None:
    task, growth = new_task("--resolutions", 0.5, 1, "--no-cache_latents")
    task.enter_stage(growth)
    pixels = torch.stack(
        [to_pixels(read_image(task.latents.data, index), 64, task.latents.images) for index in (0, 1)]
    )
    torch.manual_seed(3)
    latents = task.latents.draw({"index": torch.tensor([0, 1]), "pixel_values": pixels})
    small = torch.nn.functional.avg_pool2d(pixels, 2)
    torch.manual_seed(3)
    with torch.no_grad():
        posterior = task.pipeline.vae.encode(small).latent_dist
        # Noise in another memory format would be other numbers.
        literal = posterior.mean + posterior.std * torch.randn_like(posterior.mean.contiguous())
    literal = literal * task.pipeline.vae.config.scaling_factor
    torch.testing.assert_close(latents, literal, rtol=1e-5, atol=1e-6)
    assert not (task.latents.folder / "latents-32.npy").exists()


def test_only_the_unet_gets_gradients(new_task: Callable) -> None:
    task, growth = new_task("--snr_gamma", 5.0)
    task.enter_stage(growth)
    loss = task.loss(task.pipeline.unet, {"index": torch.arange(4)})
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    loss.backward()
    assert any(parameter.grad is not None for parameter in task.pipeline.unet.parameters())
    for module in (task.pipeline.vae, task.pipeline.text_encoder):
        assert all(parameter.grad is None for parameter in module.parameters())


def test_the_training_scheduler_keeps_the_pipeline_s_settings(pipeline: StableDiffusionPipeline) -> None:
    scheduler = training_scheduler(pipeline)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.alphas_cumprod[-1] < 1e-6
    assert training_scheduler(pipeline, "epsilon").config.prediction_type == "epsilon"


@pytest.mark.parametrize("damage", ["missing", "empty", "not json", "other class", "no unet", "torn weights"])
def test_a_folder_that_is_no_pipeline_is_refused(
    pipeline_dir: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "model"
    if damage == "empty":
        folder.mkdir()
    elif damage != "missing":
        shutil.copytree(pipeline_dir, folder)
    index, weights = folder / "model_index.json", folder / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "not json":
        index.write_text("{")
    elif damage == "other class":
        shutil.rmtree(folder / "unet")
        ddpm = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}
        index.write_text(json.dumps(ddpm))
    elif damage == "no unet":
        shutil.rmtree(folder / "unet")
    elif damage == "torn weights":
        weights.write_bytes(weights.read_bytes()[:999])
    with pytest.raises(GrowthError, match="cannot be loaded as a Stable Diffusion pipeline"):
        load_pipeline(str(folder))


def test_pipelines_are_loaded_in_float32_without_a_safety_checker(pipeline_dir: Path, tmp_path: Path) -> None:
    StableDiffusionPipeline.from_pretrained(pipeline_dir).to(torch.float16).save_pretrained(tmp_path / "half")
    pipeline = load_pipeline(str(tmp_path / "half"))
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    assert {part.dtype for part in parts} == {torch.float32}
    # In a recipe those that do not train wait as they were stored.
    hold_as_stored(pipeline.components.values())
    assert [part.dtype for part in parts] == [torch.float32, torch.float16, torch.float16]
    with on_device(parts, torch.device("cpu")):
        assert {part.dtype for part in parts} == {torch.float32}
    assert pipeline.safety_checker is None


def test_pictures_depend_on_the_seed_alone_and_leave_no_trace(pipeline: StableDiffusionPipeline) -> None:
    pipeline.unet.train()
    scheduler, state = pipeline.scheduler, torch.get_rng_state()

    def draw(seed: int, *prompts: str) -> list[bytes]:
        images = sample_images(pipeline, prompts, size=32, steps=2, guidance=3.0, seed=seed)
        assert {image.size for image in images} == {(32, 32)}
        return [image.tobytes() for image in images]

    first = draw(0, "a", "b")
    assert torch.equal(torch.get_rng_state(), state)
    assert pipeline.unet.training
    assert not pipeline.vae.training
    assert pipeline.scheduler is scheduler
    torch.manual_seed(99)
    assert draw(0, "a", "b") == first
    assert draw(1, "a", "b") != first
