"""The class-conditional task: its loss, the dropped labels, the resolution of stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator
from diffusers.pipelines.dit.pipeline_dit import DiTPipeline
from torch import Tensor

from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.labelled import class_names, load_labelled_images
from autoprog_diffusion.growth import ConfigError, GrowthScheduler
from autoprog_diffusion.tasks.arguments import ClassConditionalArguments, noise_settings
from autoprog_diffusion.tasks.class_conditional import ClassConditional, set_classes
from autoprog_diffusion.tasks.dit_labels import label_tables
from autoprog_diffusion.tasks.learned_variance import variational_bound
from autoprog_diffusion.training.build import make_latents
from autoprog_diffusion.training.recipe_arguments import Arguments

from .tiny import growth_of
from .tiny_transformers import SIZE, build_dit, write_classes


NewTask = Callable[..., tuple[ClassConditional, GrowthScheduler]]


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    folder = write_classes(tmp_path_factory.mktemp("classes"))
    return load_labelled_images(train_data_dir=str(folder), resolution=SIZE)


@pytest.fixture
def new_task(
    labelled: datasets.Dataset, tmp_path: Path, new_accelerator: Callable[[Arguments], Accelerator]
) -> NewTask:
    """A task and its growth in stage 0 of two stages of 4 steps each."""

    def make(
        *flags: object, pipeline: DiTPipeline | None = None, resolution: int = SIZE, data: Any = labelled, **dit: Any
    ) -> tuple[ClassConditional, GrowthScheduler]:
        words = ["--output_dir", tmp_path / "out", "--num_stages", 2, "--direction", "unfreeze", *flags]
        args = tyro.cli(ClassConditionalArguments, args=[str(word) for word in words])
        pipeline = pipeline or build_dit(**dit)
        set_classes(pipeline, class_names(data), keep=args.classes.keep_classes, seed=args.train.seed)
        growth = GrowthScheduler(pipeline.transformer, growth_of(args, 8)[0])
        growth.prepare(pipeline.transformer, num_training_steps=8)
        pipeline.transformer.train()
        latents = make_latents(pipeline, data, args, new_accelerator(args), resolution=resolution)
        return ClassConditional(pipeline, latents, noise_settings(args), args.classes), growth

    return make


def batch(*rows: int) -> dict[str, Tensor]:
    return {"index": torch.tensor(rows)}


class Recorded:
    """A denoiser that keeps what it was called with."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.calls = model, []

    def __call__(self, noisy: Tensor, **kwargs: Any) -> Any:
        self.calls.append((noisy, kwargs))
        self.output = self.model(noisy, **kwargs)
        return self.output


@pytest.mark.parametrize("learned", [False, True])
def test_the_loss_is_the_error_of_the_noise_and_the_bound_of_the_variance(new_task: NewTask, learned: bool) -> None:
    task, growth = new_task("--class_dropout", 0, learned_variance=learned)
    task.enter_stage(growth)
    denoiser = Recorded(task.pipeline.transformer)
    torch.manual_seed(5)
    loss = task.loss(denoiser, batch(0, 9, 17))
    noisy, kwargs = denoiser.calls[0]
    assert kwargs["class_labels"].tolist() == [0, 1, 2]
    torch.manual_seed(5)
    latents, _ = task.latents.draw(batch(0, 9, 17)), torch.rand(3)
    noise, timesteps = torch.randn_like(latents), kwargs["timestep"]
    torch.testing.assert_close(noisy, task.noise_scheduler.add_noise(latents, noise, timesteps))
    literal = F.mse_loss(denoiser.output[0][:, :4], noise)
    if learned:
        parts = denoiser.output[0][:, :4], denoiser.output[0][:, 4:]
        bound = variational_bound(
            *parts, clean=latents, noisy=noisy, timesteps=timesteps, noise_scheduler=task.noise_scheduler
        )
        assert bound.item() > 1e-4
        literal = literal + bound
    torch.testing.assert_close(loss, literal)


def test_without_its_loss_the_variance_gets_no_gradient(new_task: NewTask) -> None:
    for flags, silent in ((("--no-variance_loss",), True), ((), False)):
        task, growth = new_task(*flags, learned_variance=True)
        task.enter_stage(growth)
        task.loss(task.pipeline.transformer, batch(0, 1)).backward()
        gradient = task.pipeline.transformer.proj_out_2.weight.grad.view(2, 2, 8, -1)[:, :, 4:]
        assert (gradient.abs().max().item() == 0) == silent


def test_a_dropped_label_is_dropped_in_every_block(new_task: NewTask) -> None:
    task, growth = new_task("--class_dropout", 0.5)
    task.enter_stage(growth)
    seen: list[list[int]] = []
    for embedder in label_tables(task.pipeline.transformer):
        embedder.embedding_table.register_forward_pre_hook(lambda module, args: seen.append(args[0].tolist()))
    torch.manual_seed(0)
    task.loss(task.pipeline.transformer, batch(*range(24)))
    assert len(seen) == 5  # four blocks, and the first one's again for the output head
    assert all(labels == seen[0] for labels in seen)
    dropped = [label == 1000 for label in seen[0]]
    assert 5 < sum(dropped) < 19
    assert all(gone or label == row // 8 for row, (label, gone) in enumerate(zip(seen[0], dropped)))


def test_positions_follow_the_resolution_of_the_stage(new_task: NewTask) -> None:
    task, growth = new_task("--resolutions", 0.5, 1)
    embedder = task.pipeline.transformer.pos_embed
    embedder.proj.weight.data.zero_()
    embedder.proj.bias.data.zero_()
    seen: list[Tensor] = []
    embedder.register_forward_hook(lambda module, args, output: seen.append(output[0].detach()))
    for steps in (4, 0):
        task.enter_stage(growth)
        task.loss(task.pipeline.transformer, batch(0, 1))
        for _ in range(steps):
            growth.step()
    half, full = seen[0].view(2, 2, -1), seen[1].view(4, 4, -1)
    # Every second position of the full grid: the same span in fewer steps, not its corner or middle.
    torch.testing.assert_close(half, full[::2, ::2])


def test_stages_have_latents_of_their_own_size(new_task: NewTask, tmp_path: Path) -> None:
    task, growth = new_task("--resolutions", 0.5, 1, "--random_flip")
    task.enter_stage(growth)
    assert task.latents.draw(batch(0, 5)).shape == (2, 4, 4, 4)
    for _ in range(4):
        growth.step()
    task.enter_stage(growth)
    assert task.latents.draw(batch(0, 5)).shape == (2, 4, 8, 8)
    assert sorted(path.name for path in (tmp_path / "out" / "cache").glob("*.npy")) == [
        "latents-16.npy", "latents-32.npy",
    ]  # fmt: skip


def test_only_the_transformer_gets_gradients(new_task: NewTask) -> None:
    task, growth = new_task("--snr_gamma", 5.0)
    task.enter_stage(growth)
    loss = task.loss(task.pipeline.transformer, batch(0, 1, 2, 3))
    assert loss.dtype == torch.float32
    loss.backward()
    assert any(parameter.grad is not None for parameter in task.pipeline.transformer.parameters())
    assert all(parameter.grad is None for parameter in task.pipeline.vae.parameters())


def test_a_corrupt_picture_is_named(new_task: NewTask, tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "data")
    (folder / "rose" / "3.png").write_bytes(b"nothing")
    data = load_labelled_images(train_data_dir=str(folder), resolution=SIZE)
    task, growth = new_task(data=data)
    with pytest.raises(DataError, match=r"image 11 of the training set cannot be decoded \(.*rose.3\.png\)"):
        task.enter_stage(growth)


def test_what_the_pipeline_or_the_loss_cannot_do_is_refused(new_task: NewTask) -> None:
    with pytest.raises(ConfigError, match="--resolution 16 is not allowed: this DiT draws images of 32 pixels only"):
        new_task(resolution=16)
    with pytest.raises(ConfigError, match="--class_dropout 1.5 is not allowed"):
        new_task("--class_dropout", 1.5)
    with pytest.raises(ConfigError, match="prediction_type='v_prediction' has no loss here.*--no-variance_loss"):
        new_task("--prediction_type", "v_prediction", learned_variance=True)
    new_task("--prediction_type", "v_prediction", "--no-variance_loss", learned_variance=True)
