"""What all tests share: one thread, one seed, one accelerator at a time, and slow tests on request only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch


torch.set_num_threads(1)


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
