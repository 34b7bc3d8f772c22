"""A small SD3 whose activations matter, and its profile."""

from __future__ import annotations

import pytest

from autoprog_diffusion.planner.models import ModelSource
from autoprog_diffusion.planner.profile import Profile, make_profile
from autoprog_diffusion.planner.shapes import Shape


SIDE = 32


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
