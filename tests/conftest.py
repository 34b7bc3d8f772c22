"""What all tests share: one thread, one seed, one accelerator at a time, and slow tests on request only."""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


# Recipes take all idle cores where nobody has chosen, and several tests may run at a time.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


LEFT_OUT = pytest.StashKey[int]()
# Folders whose files launch processes, and take longest.
LAUNCHING = ("distributed", "recipes", "faults", "plugin")


def _provide_torchvision() -> None:
    """Let a torchvision for another torch be imported, here and in the processes that tests start; see the shim."""
    shim = Path(__file__).parent / "torchvision_shim"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(shim), *filter(None, [os.environ.get("PYTHONPATH")])])
    spec = importlib.util.spec_from_file_location("torchvision_shim", shim / "sitecustomize.py")
    sys.modules["torchvision_shim"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_provide_torchvision()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """The whole suite runs in a process per core, a file in one of them, if pytest-xdist is there; `-n 0` says no."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS or not config.pluginmanager.hasplugin("xdist"):
        return
    option, cores = config.option, os.cpu_count() or 1
    asked = option.numprocesses is not None or option.collectonly or option.usepdb
    if not asked and cores > 1 and not hasattr(config, "workerinput"):
        option.numprocesses, option.dist = min(8, cores), "loadfile"  # a file's launches serve all of its tests
        option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow tests out, unless they are asked for, and begin with the files that take longest."""
    if "slow" not in (config.option.markexpr or ""):
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        config.stash[LEFT_OUT] = len(slow)
        if slow:
            config.hook.pytest_deselected(items=slow)
    if hasattr(config, "workerinput"):
        # A long file that one process begins last would be waited for by all others.
        items.sort(key=lambda item: item.path.parent.name not in LAUNCHING)


def pytest_report_collectionfinish(config: pytest.Config) -> str | None:
    count = config.stash.get(LEFT_OUT, 0)
    return f"{count} slow tests are left out: -m slow runs them" if count else None


def pytest_sessionfinish() -> None:
    """Tests that never fold are no program that forgets to."""
    from autoprog_diffusion.growth.watch.folding import remind

    atexit.unregister(remind)


def pytest_collection_finish() -> None:
    """Leave what was imported out of all garbage collections: a million objects, which growth looks through too."""
    gc.collect()
    gc.freeze()


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
