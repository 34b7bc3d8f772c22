"""Lets a test import the modules of one benchmark; folders share names such as `run`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState


BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """(name of a benchmark) -> its folder, whose modules can then be imported by the test."""

    def enter(name: str) -> Path:
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        monkeypatch.syspath_prepend(str(BENCHMARKS / name))
        return BENCHMARKS / name

    before = set(sys.modules)
    yield enter
    for name in set(sys.modules) - before:
        if BENCHMARKS in Path(getattr(sys.modules[name], "__file__", None) or ".").resolve().parents:
            del sys.modules[name]
    # A benchmark makes accelerators of its own, each of which keeps the process-wide settings of the first one.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
