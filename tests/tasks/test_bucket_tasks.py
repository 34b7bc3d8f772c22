"""Buckets in the tasks and the trainer: conditions by hand, caches, accumulation, held-out images, resumed runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import Tensor

from autoprog_diffusion.data.images import ImageSettings, cut_window
from autoprog_diffusion.evaluation.draws import Draw
from autoprog_diffusion.growth import GrowthScheduler
from autoprog_diffusion.tasks.arguments import noise_settings
from autoprog_diffusion.tasks.sdxl import TextToImageXL, load_sdxl
from autoprog_diffusion.tasks.stable_diffusion import TextToImage, load_pipeline
from autoprog_diffusion.training.build import make_latents, make_loader
from autoprog_diffusion.training.diffusion import DiffusionTrainer
from autoprog_diffusion.training.held_out import HeldOutRun
from autoprog_diffusion.training.optimizer_step import accumulated_step
from autoprog_diffusion.training.recipe_arguments import Arguments

from .bucketed import SHAPES, batch_of, make_pictures, plan_of
from .tiny import growth_of, parse
from .training import NewTrainer, same, weights


@pytest.fixture(scope="module")
def pictures() -> datasets.Dataset:
    return make_pictures()


@pytest.fixture
def new_trainer(
    pipeline_dir: Path,
    pictures: datasets.Dataset,
    tmp_path: Path,
    new_accelerator: Callable[[Arguments], Accelerator],
) -> NewTrainer:
    def make(*flags: object, steps: dict[int, int] | None = None) -> DiffusionTrainer:
        args = parse("--output_dir", tmp_path / "out", "--search", "none", "--train_batch_size", 4, *flags)
        accelerator = new_accelerator(args)
        pipeline = load_pipeline(str(pipeline_dir))
        set_seed(args.train.seed, device_specific=True)
        config, given = growth_of(args, 4)
        growth = GrowthScheduler(pipeline.unet, config, accelerator)
        plan = plan_of(pictures, steps)
        latents = make_latents(pipeline, pictures, args, accelerator, resolution=64, plan=plan)
        task = TextToImage(pipeline, latents, noise_settings(args), empty=0.25)
        loader = make_loader(pictures, args, 64, plan=plan)
        return DiffusionTrainer(
            pipeline.unet, growth, plan=given, task=task, loader=loader, args=args, accelerator=accelerator
        )

    return make


@pytest.fixture
def new_xl(
    folders: dict[str, Path],
    pictures: datasets.Dataset,
    tmp_path: Path,
    new_accelerator: Callable[[Arguments], Accelerator],
) -> Callable[..., tuple[TextToImageXL, GrowthScheduler, Arguments]]:
    def make(*flags: object) -> tuple[TextToImageXL, GrowthScheduler, Arguments]:
        args = parse("--output_dir", tmp_path / "out", "--num_stages", 2, "--direction", "unfreeze", *flags)
        pipeline = load_sdxl(str(folders["sdxl"]))
        growth = GrowthScheduler(pipeline.unet, growth_of(args, 4)[0])
        growth.prepare(pipeline.unet, num_training_steps=2)
        plan = plan_of(pictures, {32: 4, 64: 8})
        latents = make_latents(pipeline, pictures, args, new_accelerator(args), resolution=64, plan=plan)
        return TextToImageXL(pipeline, latents, noise_settings(args)), growth, args

    return make


def test_sdxl_is_told_the_sizes_of_cached_buckets(new_xl: Callable) -> None:
    task, growth, _ = new_xl("--resolutions", 0.5, 1)
    plan = task.latents.plan
    for scale in (0.5, 1.0):
        task.enter_stage(growth)
        for items in plan.groups(torch.arange(len(plan)), 8):
            batch = batch_of(plan, items)
            told = task.conditions(batch)["added_cond_kwargs"]["time_ids"]
            bucket = plan.buckets[int(plan.places[items[0]])]
            height = max(4, round(scale * bucket.height / 4) * 4)
            width = max(4, round(scale * bucket.width / 4) * 4)
            assert task.latents.draw(batch).shape[2:] == (height // 4, width // 4)
            for row, ids in zip(plan.rows[items].tolist(), told.tolist()):
                own = SHAPES[row % len(SHAPES)]
                factor = max(height / own[0], width / own[1])
                top = (max(height, round(own[0] * factor)) - height) // 2
                left = (max(width, round(own[1] * factor)) - width) // 2
                assert ids == [*own, top, left, height, width]
        growth.step()


def test_sdxl_is_told_the_random_crops_of_buckets(new_xl: Callable) -> None:
    task, growth, args = new_xl(
        "--resolutions", 0.5, 1, "--no-cache_latents", "--random_flip", "--train_batch_size", 4
    )
    task.enter_stage(growth)
    plan = task.latents.plan
    rows = make_loader(task.latents.data, args, 64, plan=plan).dataset
    moved = set()
    for item in range(len(plan)):
        batch = torch.utils.data.default_collate([rows[item]])
        bucket = plan.buckets[int(plan.places[item])]
        assert batch["pixel_values"].shape[2:] == (bucket.height, bucket.width)
        height, width = task.latents.size_of(batch)
        ids = task.conditions(batch)["added_cond_kwargs"]["time_ids"][0].tolist()
        own = SHAPES[int(plan.rows[item]) % len(SHAPES)]
        assert ids[:2] == list(own)
        assert ids[4:] == [height, width]
        # By hand: the part is found in the resized image, or in its mirror image.
        factor = max(bucket.height / own[0], bucket.width / own[1])
        size = (max(bucket.width, round(own[1] * factor)), max(bucket.height, round(own[0] * factor)))
        picture = task.latents.data[int(plan.rows[item])]["image"].convert("RGB")
        whole = np.asarray(picture.resize(size, Image.Resampling.LANCZOS), dtype=np.float32) / 127.5 - 1
        top, left = (int(value) for value in batch["window"][0, 2:])
        part = batch["pixel_values"][0].permute(1, 2, 0).numpy()
        found = []
        for image in (whole, whole[:, ::-1]):
            found.append(np.allclose(image[top : top + bucket.height, left : left + bucket.width], part, atol=1e-6))
        assert any(found)
        # And reduced: what the smaller size cuts off, and the scale of what is left.
        ratio = max(height / bucket.height, width / bucket.width)
        tall = min(bucket.height, round(height / ratio))
        wide = min(bucket.width, round(width / ratio))
        expected = [
            (top + (bucket.height - tall) // 2) * height / tall,
            (left + (bucket.width - wide) // 2) * width / wide,
        ]
        assert np.allclose(ids[2:4], expected, rtol=1e-6)
        moved.add((top > 0, left > 0))
    assert len(moved) > 1


def test_cached_latents_are_exactly_those_that_are_not_cached(new_trainer: NewTrainer) -> None:
    flags = ("--max_train_steps", 4, "--center_crop", "--num_stages", 1, "--growth", "off")
    cached = new_trainer(*flags)
    cached.enter_stage()
    uncached = new_trainer(*flags, "--no-cache_latents")
    uncached.enter_stage()
    plan = cached.task.latents.plan
    for place in range(len(plan.buckets)):
        items = plan.items_of(place)
        if not len(items):
            continue
        # The whole bucket in its order, as the cache is filled: batches of another size may round otherwise.
        batch = torch.utils.data.default_collate([uncached._rows[int(item)] for item in items])
        torch.manual_seed(0)
        one = cached.task.latents.draw(batch_of(plan, items))
        torch.manual_seed(0)
        other = uncached.task.latents.draw(batch)
        assert torch.equal(one, other)
    names = sorted(path.name for path in cached.task.latents.folder.glob("latents-*.npy"))
    assert len(names) == sum(count > 0 for count in plan.counts())
    assert "latents-64x64-at-64x64.npy" in names


def test_a_cached_bucket_is_the_vae_s_and_its_mirror_images_follow(new_trainer: NewTrainer) -> None:
    trainer = new_trainer("--max_train_steps", 4, "--random_flip", "--growth", "off")
    trainer.enter_stage()
    latents = trainer.task.latents
    plan = latents.plan
    place = int(plan.places[1])
    items = plan.items_of(place)
    bucket = plan.buckets[place]
    for position in (0, len(items) - 1):
        image = latents.data[int(plan.rows[items[position]])]["image"]
        pixels = cut_window(image, bucket.height, bucket.width, ImageSettings()).pixels
        for row, shown in ((position, pixels), (len(items) + position, pixels.flip(-1))):
            with torch.no_grad():
                expected = trainer.task.pipeline.vae.encode(shown[None]).latent_dist.parameters
            found = latents._caches[place][torch.tensor([row])]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_cache_in_bfloat16_is_the_rounded_one(new_trainer: NewTrainer) -> None:
    flags = ("--max_train_steps", 4, "--growth", "off")
    whole = new_trainer(*flags)
    whole.enter_stage()
    kept = {place: cache[torch.arange(2)] for place, cache in whole.task.latents._caches.items()}
    rounded = new_trainer(*flags, "--cache_dtype", "bfloat16")
    rounded.enter_stage()
    for place, cache in rounded.task.latents._caches.items():
        assert torch.equal(cache[torch.arange(2)], kept[place].bfloat16().float())


def test_an_accumulated_step_over_buckets_is_the_mean_over_its_samples(new_trainer: NewTrainer) -> None:
    flags = ("--max_train_steps", 2, "--growth", "off", "--gradient_accumulation_steps", 3)
    trainer = new_trainer(*flags)
    trainer.enter_stage()
    batches = list(trainer._loader)[:3]
    plan = trainer.task.latents.plan
    sizes = {plan.places[batch["item"][0]].item() for batch in batches}
    assert len(sizes) > 1
    draws = []
    for number in range(3):
        keys = tuple((0, number, row) for row in range(4))
        draws.append(Draw(torch.linspace(0.1, 0.9, 4), keys, torch.device("cpu")))
    losses = [trainer.task.held_out_losses(trainer.bare, batch, draw) for batch, draw in zip(batches, draws)]
    torch.cat(losses).mean().backward()
    expected = {name: parameter.grad.clone() for name, parameter in trainer.bare.named_parameters()}
    trainer.bare.zero_grad()
    found: dict[str, Tensor] = {}

    def clip() -> None:
        found.update({name: parameter.grad.clone() for name, parameter in trainer.bare.named_parameters()})

    coming = zip(batches, draws)
    done = accumulated_step(
        trainer.accelerator,
        trainer.model,
        trainer.optimizer,
        passes=3,
        loss=lambda: trainer.task.held_out_losses(trainer.model, *next(coming)).mean(),
        clip=clip,
    )
    torch.testing.assert_close(done.loss, torch.cat(losses).mean().detach())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [{64: 8}, {32: 4, 64: 8}], ids=["one", "two"])
def test_a_resumed_run_ends_bit_identical(new_trainer: NewTrainer, steps: dict[int, int]) -> None:
    """Accumulation does not divide an epoch, and the checkpoint lies in the middle of one."""
    flags = ("--num_train_epochs", 3, "--gradient_accumulation_steps", 2, "--checkpointing_steps", 4)
    flags += ("--random_flip", "--resolutions", 0.5, 1, "--num_stages", 2)
    whole = new_trainer(*flags, steps=steps)
    seen: list[list[int]] = []
    loss = whole.task.loss
    whole.task.loss = lambda model, batch: seen.append(batch["item"].tolist()) or loss(model, batch)
    whole.train()
    assert whole.step == whole.max_steps
    plan = whole.task.latents.plan
    assert all(len({int(plan.places[item]) for item in batch}) == 1 for batch in seen)
    resumed = new_trainer(*flags, steps=steps)
    assert resumed.resume("checkpoint-4")
    assert resumed.position()[1] > 0
    resumed.train()
    assert same(weights(whole), weights(resumed))
    assert resumed.metrics.rows["loss"] == whole.metrics.rows["loss"]


def test_flops_are_those_of_a_mean_batch(new_trainer: NewTrainer) -> None:
    trainer = new_trainer("--num_train_epochs", 1, "--growth", "off", steps={32: 4, 64: 8})
    trainer.train()
    flops = set(trainer.metrics.rows["flops"])
    assert len(flops) == 1
    works = [trainer._work(step, None) for step in range(trainer.max_steps)]
    assert min(works) < 0.6 < 1.2 < max(works)
    assert abs(sum(works) / len(works) - 1) < 1e-6


def test_held_out_images_are_weighted_equally_whatever_their_bucket(new_trainer: NewTrainer) -> None:
    trainer = new_trainer("--max_train_steps", 2, "--growth", "off", "--evaluation_steps", 1, steps={32: 4, 64: 8})
    task: Any = trainer.task
    args = parse("--output_dir", trainer.root.parent, "--train_batch_size", 4, "--evaluation_steps", 1)
    plan = task.latents.plan
    asked: list[dict[str, Tensor]] = []
    losses = task.held_out_losses
    task.held_out_losses = lambda model, batch, draw: asked.append(batch) or losses(model, batch, draw)
    run = HeldOutRun(task, plan, args)
    trainer.watch_held_out(run)
    run.follow(trainer)
    evaluation = run.record.points[0].evaluation
    rows = sorted({int(row) for batch in asked for row in batch["index"]})
    assert evaluation.losses.shape[1] == len(rows)
    assert sum(len(batch["index"]) for batch in asked) == len(rows) * evaluation.losses.shape[0]
    for batch in asked:
        assert len(set(plan.places[batch["item"]].tolist())) == 1
        sides = {plan.buckets[place].resolution for place in plan.places[batch["item"]].tolist()}
        # Every image at the largest size that it has pixels for.
        assert torch.equal(plan.largest_of(batch["index"]), batch["item"])
        assert sides <= {32, 64}
    assert evaluation.loss == pytest.approx(float(evaluation.losses.mean()))
