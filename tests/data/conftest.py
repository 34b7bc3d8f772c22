from __future__ import annotations

from collections.abc import Iterator

import datasets
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """Accelerate keeps its state in class attributes: each test starts as a new process would."""
    forget()
    yield Accelerator(cpu=True)
    forget()


def forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
