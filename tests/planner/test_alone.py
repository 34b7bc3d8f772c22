"""Tests of the device without memory, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ALONE, ON_THE_DEVICE


HERE = Path(__file__).parent


# Command lines and refusals are what a change is likely to break: they are in every run of the suite.
OFTEN = "test_planning.py"


@pytest.mark.skipif(ALONE in os.environ, reason="this is that process")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == OFTEN else pytest.mark.slow) for name in ON_THE_DEVICE]
)
def test_the_device_without_memory_alone(name: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / name)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, ALONE: "1"},
        cwd=HERE.parents[1],
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-4000:]
