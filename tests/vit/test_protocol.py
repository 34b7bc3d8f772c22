"""What the training loop is typed by: the growth objects of this library satisfy `Growth`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import ViTConfig, ViTForImageClassification

from autoprog_diffusion.growth.protocol import Growth
from autoprog_diffusion.vit.autoprog_one.config import ViTGrowthConfig
from autoprog_diffusion.vit.autoprog_one.scheduler import ViTGrowth


MEMBERS = sorted(name for name in vars(Growth) if not name.startswith("_"))


def started() -> Growth:
    """Depth and tokens that grow."""
    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=16,
            patch_size=4,
        )
    )
    config = ViTGrowthConfig(num_stages=2, search="fixed", strides=(8, None), resolutions=(16, 16))
    growth = ViTGrowth(model, config)
    optimizer = torch.optim.SGD(growth.parameters(), lr=0.1)
    growth.prepare(model, num_training_steps=2, optimizer=optimizer)
    return growth


def test_every_member_is_there() -> None:
    for name in MEMBERS:
        assert hasattr(started(), name)


def test_what_a_loop_reads_changes_with_the_stage() -> None:
    growth = started()
    seen: list[Sequence[object]] = []
    for _ in range(2):
        seen.append((growth.stage, growth.resolution, growth.searching, growth.trainable_fraction == 1.0))
        growth.step()
    assert seen == [(0, 16, False, False), (1, 16, False, True)]
