"""DreamBooth on Stable Diffusion XL and on transformers: the loss on the subject, and that on its class, weighted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import tyro
from accelerate import Accelerator

from autoprog_diffusion.growth import ConfigError, GrowthError, GrowthScheduler
from autoprog_diffusion.tasks.arguments import DreamboothArguments, noise_settings
from autoprog_diffusion.tasks.dreambooth import Dreambooth, draw_class_images
from autoprog_diffusion.tasks.dreambooth_tasks import DreamboothFlow, DreamboothXL, dreambooth_task
from autoprog_diffusion.tasks.lora import LoraSettings, check_no_lora, load_any
from autoprog_diffusion.training.build import make_latents
from autoprog_diffusion.training.recipe_arguments import Arguments

from .tiny import growth_of
from .tiny_families import build_pixart, build_z_image
from .tiny_transformers import build_flux, build_sd3, save


pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
PRIOR = ("--with_prior_preservation", "--class_prompt", "cat", "--num_class_images", 3, "--instance_prompt", "sks")
BUILD = {"sd3": build_sd3, "flux": build_flux, "z_image": build_z_image, "pixart": build_pixart}
KINDS = {"sd": Dreambooth, "sdxl": DreamboothXL, "sd3": DreamboothFlow, "flux": DreamboothFlow}
NewTask = Callable[..., Any]


@pytest.fixture(scope="module")
def models(folders: dict[str, Path], pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {**folders, **{kind: save(root / kind, build) for kind, build in BUILD.items() if kind not in folders}}


@pytest.fixture
def new_task(
    models: dict[str, Path],
    data: datasets.Dataset,
    tmp_path: Path,
    new_accelerator: Callable[[Arguments], Accelerator],
) -> NewTask:
    def make(kind: str, *flags: object) -> Any:
        words = ["--output_dir", tmp_path, "--num_stages", 1, "--no-stage_embedding", *PRIOR, *flags]
        args = tyro.cli(DreamboothArguments, args=[str(word) for word in words])
        pipeline = load_any(str(models[kind]))
        denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
        growth = GrowthScheduler(denoiser, growth_of(args, 8)[0])
        growth.prepare(denoiser, num_training_steps=8)
        latents = make_latents(pipeline, data, args, new_accelerator(args), resolution=32)
        task = dreambooth_task(
            pipeline,
            latents,
            flow=args.flow,
            noise=noise_settings(args),
            prior_loss_weight=args.subject.prior_loss_weight,
        )
        task.enter_stage(growth)
        denoiser.eval()
        return task

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_counts_with_its_weight(new_task: NewTask, kind: str) -> None:
    flags = ("--max_sequence_length", 6) if kind in ("sd3", "flux") else ()
    task = new_task(kind, "--prior_loss_weight", 0.25, *flags)
    assert type(task) is KINDS[kind]
    model = getattr(task.pipeline, "transformer", None) or task.pipeline.unet
    with torch.no_grad():
        torch.manual_seed(1)
        loss = task.loss(model, {"index": torch.tensor([[0, 10], [1, 11]])})
        torch.manual_seed(1)
        row = {"index": torch.tensor([0, 1, 10, 11])}
        if kind in ("sd3", "flux"):
            errors = task.errors(model, row)
        else:
            prediction, target, _ = task.denoise(model, row)
            errors = (prediction - target).square()
        literal = errors[:2].mean() + 0.25 * errors[2:].mean()
        torch.testing.assert_close(loss, literal, rtol=1e-5, atol=1e-6)
        torch.manual_seed(1)
        assert torch.isfinite(task.loss(model, {"index": torch.tensor([0, 1])}))


def test_the_class_is_drawn_by_the_family_s_own_arguments(
    models: dict[str, Path], tmp_path: Path, new_accelerator: Callable[[Arguments], Accelerator]
) -> None:
    args = tyro.cli(DreamboothArguments, args=[str(word) for word in ("--output_dir", tmp_path, *PRIOR)])
    settings: Any = {"size": 32, "steps": 2, "guidance": 2.0, "seed": 0, "max_sequence_length": 24}
    accelerator = new_accelerator(args)
    pipeline = load_any(str(models["z_image"]))
    files = draw_class_images(pipeline, tmp_path / "class", accelerator, args.subject, **settings)
    first = [file.read_bytes() for file in files]
    assert len(set(first)) == 3
    files[1].unlink()
    again = draw_class_images(pipeline, tmp_path / "class", accelerator, args.subject, **settings)
    assert [file.read_bytes() for file in again] == first


def test_what_does_not_fit_is_refused(new_task: NewTask) -> None:
    with pytest.raises(GrowthError, match="a PixArtSigmaPipeline is not taught a subject here: .* finetune_flow.py"):
        new_task("pixart")
    with pytest.raises(ConfigError, match="--weighting_scheme is for flow matching"):
        new_task("sd", "--weighting_scheme", "mode")
    check_no_lora(LoraSettings(rank=0))
    with pytest.raises(ConfigError, match="--lora_alpha does nothing without --rank"):
        check_no_lora(LoraSettings(rank=0, lora_alpha=8.0))
