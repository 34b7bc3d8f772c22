"""What all tests share: one thread, one seed, one accelerator at a time, and slow tests on request only."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


torch.set_num_threads(1)


def _provide_torchvision() -> None:
    """Let a torchvision for another torch be imported, here and in the processes that tests start; see the shim."""
    shim = Path(__file__).parent / "torchvision_shim"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(shim), *filter(None, [os.environ.get("PYTHONPATH")])])
    spec = importlib.util.spec_from_file_location("torchvision_shim", shim / "sitecustomize.py")
    sys.modules["torchvision_shim"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_provide_torchvision()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "slow" in (config.option.markexpr or ""):
        return
    skip = pytest.mark.skip(reason="slow: run with -m slow")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def accelerator() -> Iterator[Any]:
    """A one-process Accelerator; its process-wide state is dropped after the test."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
