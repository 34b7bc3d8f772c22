"""Fixtures: the tiny pipeline and pictures once a session, and an accelerator that forgets the one before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from autoprog_diffusion.data.captioned import load_captioned_images
from autoprog_diffusion.growth import GrowthScheduler
from autoprog_diffusion.tasks.arguments import noise_settings
from autoprog_diffusion.tasks.flow_matching import load_flow
from autoprog_diffusion.tasks.stable_diffusion import TextToImage, load_pipeline
from autoprog_diffusion.training.build import make_latents, make_loader
from autoprog_diffusion.training.diffusion import DiffusionTrainer
from autoprog_diffusion.training.optimizers import check_optimizer
from autoprog_diffusion.training.recipe_arguments import Arguments, check_arguments
from autoprog_diffusion.training.trained_dtype import store_in_bfloat16

from .tiny import accelerator_of, build_pipeline, growth_of, parse, write_images
from .tiny_families import BUILD
from .tiny_folders import build_folders
from .tiny_transformers import build_flux, build_sd3, save
from .training import NewTrainer


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def pipeline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="session")
def folders(pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind of pipeline -> the folder of a tiny one."""
    return build_folders(tmp_path_factory.mktemp("pipelines"), pipeline_dir)


@pytest.fixture(scope="session")
def images_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def data(images_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    cache_dir = str(tmp_path_factory.mktemp("datasets"))
    return load_captioned_images(train_data_dir=str(images_dir), resolution=64, cache_dir=cache_dir)


@pytest.fixture(scope="session")
def family_pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Family -> its tiny pipeline, loaded once: no test trains them."""
    root = tmp_path_factory.mktemp("families")
    loaded = {}
    for kind, build in {"sd3": build_sd3, "flux": build_flux, **BUILD}.items():
        loaded[kind] = load_flow(str(save(root / kind, build)))
        loaded[kind].transformer.eval()
    return loaded


@pytest.fixture
def pipeline(pipeline_dir: Path) -> StableDiffusionPipeline:
    return load_pipeline(str(pipeline_dir))


@pytest.fixture
def new_accelerator() -> Iterator[Callable[[Arguments], Accelerator]]:
    """Accelerate keeps its state in class attributes: each call starts as a new process would."""

    def make(args: Arguments) -> Accelerator:
        forget()
        check_arguments(args)
        return accelerator_of(args)

    yield make
    forget()


@pytest.fixture
def new_trainer(
    pipeline_dir: Path,
    data: datasets.Dataset,
    tmp_path: Path,
    new_accelerator: Callable[[Arguments], Accelerator],
) -> NewTrainer:
    def make(*flags: object) -> DiffusionTrainer:
        args = parse("--output_dir", tmp_path / "out", "--search", "none", *flags)
        accelerator = new_accelerator(args)
        pipeline = load_pipeline(str(pipeline_dir))
        set_seed(args.train.seed, device_specific=True)
        check_optimizer(args.train, accelerator.device, accelerator.mixed_precision)
        if args.train.trained_dtype == "bfloat16":
            store_in_bfloat16(pipeline.unet)
        config, plan = growth_of(args, 4)
        growth = GrowthScheduler(pipeline.unet, config, accelerator)
        latents = make_latents(pipeline, data, args, accelerator, resolution=64)
        task = TextToImage(pipeline, latents, noise_settings(args))
        loader = make_loader(data, args, 64)
        return DiffusionTrainer(
            pipeline.unet, growth, plan=plan, task=task, loader=loader, args=args, accelerator=accelerator
        )

    return make


def forget() -> None:
    """Drop what Accelerate keeps between runs in one process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
