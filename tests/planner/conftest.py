"""A small SD3 whose activations matter, and its profile; tests of the device without memory run in a process alone.

PyTorch makes its threads for backward passes when the first one runs: a device that comes later has none. And a device
that is there is the accelerator of all that runs afterwards. `test_alone.py` starts the process.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autoprog_diffusion.planner.models import ModelSource
from autoprog_diffusion.planner.profile import Profile, make_profile
from autoprog_diffusion.planner.shapes import Shape


SIDE = 32
ALONE = "PLANNER_TESTS_ALONE"
ON_THE_DEVICE = ("test_memory.py", "test_planning.py", "test_rules.py")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave the tests of the device to the process that `test_alone.py` starts."""
    here = collection_path.parent == Path(__file__).parent
    return True if here and collection_path.name in ON_THE_DEVICE and ALONE not in os.environ else None


@pytest.fixture(scope="session")
def small() -> ModelSource:
    config = {
        "sample_size": SIDE,
        "num_layers": 4,
        "num_attention_heads": 8,
        "joint_attention_dim": 64,
        "caption_projection_dim": 512,
        "pooled_projection_dim": 64,
        "pos_embed_max_size": 32,
    }
    return ModelSource("small", "SD3Transformer2DModel", config, pixels=256)


@pytest.fixture(scope="session")
def profile(small: ModelSource) -> Profile:
    return make_profile(small, Shape(side=SIDE))
