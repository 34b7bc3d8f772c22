"""Fixtures: pictures and an environment without network, and one grown run of every script."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from . import pipelines
from .scripts import Run, Script, Workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    folder = tmp_path_factory.mktemp("plugin")
    pipelines.write_images(folder / "images", captions=True)
    pipelines.write_images(folder / "instances", captions=False)
    # Without ACCELERATE_USE_CPU a second rank on the CPU believes that it is alone.
    changes = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    return Workshop(folder, os.environ | changes | {"HF_HOME": str(folder / "hf"), "CUDA_VISIBLE_DEVICES": ""})


@pytest.fixture(scope="session")
def grown(workshop: Workshop) -> Callable[[Script], Run]:
    """What a script leaves that grew in two stages over four steps, with checkpoints; run once for all tests."""
    runs: dict[str, Run] = {}

    def run(script: Script) -> Run:
        if script.id not in runs:
            runs[script.id] = workshop.grow(script, workshop.folder / "grown" / script.id)
        return runs[script.id]

    return run
