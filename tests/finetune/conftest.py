"""Fixtures: the tiny pipeline and pictures once a session, and an accelerator that forgets the one before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from autoprog_diffusion.finetune.arguments import Arguments
from autoprog_diffusion.finetune.images import load_captioned_images
from autoprog_diffusion.finetune.setup import make_accelerator
from autoprog_diffusion.finetune.stable_diffusion import load_pipeline

from .tiny import build_pipeline, parse, write_images


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def pipeline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="session")
def images_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def data(images_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    args = parse("--train_data_dir", images_dir)
    return load_captioned_images(args.data, 64, str(tmp_path_factory.mktemp("datasets")))


@pytest.fixture
def pipeline(pipeline_dir: Path) -> StableDiffusionPipeline:
    return load_pipeline(str(pipeline_dir), parse())


@pytest.fixture
def new_accelerator() -> Iterator[Callable[[Arguments], Accelerator]]:
    """Accelerate keeps its state in class attributes: each call starts as a new process would."""

    def make(args: Arguments) -> Accelerator:
        _forget()
        return make_accelerator(args)

    yield make
    _forget()


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
