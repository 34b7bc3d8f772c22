"""Images at a stage's resolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth import ConfigError
from autoprog_diffusion.growth.resize import resize_images, stage_size


STAGE_SIZE = [
    ((64, 64), 1.0, 8, (64, 64)),
    ((64, 64), 0.5, 8, (32, 32)),
    ((512, 768), 0.5, 8, (256, 384)),
    ((768, 512), 256, 8, (384, 256)),
    ((64, 64), 48, 16, (48, 48)),
    ((64, 64), 64, 8, (64, 64)),
]


def test_stage_size() -> None:
    for size, resolution, multiple, expected in STAGE_SIZE:
        assert stage_size(size, resolution, multiple) == expected


SIZES_THAT_DO = [
    ((64, 64), 128, r"128 is larger than the images, \(64, 64\)"),
    ((64, 96), 72, "72 is larger"),
    ((64, 64), 0.3, r"0.3 makes \(64, 64\) images \(19, 19\).*multiple of 8.*\[16\]"),
    ((64, 72), 0.5, r"0.5 makes \(64, 72\) images \(32, 36\)"),
]


def test_sizes_that_do_not_fit_are_named() -> None:
    for size, resolution, named in SIZES_THAT_DO:
        with pytest.raises(ConfigError, match=named):
            stage_size(size, resolution, 8)


def test_resize_is_the_mean_of_each_area() -> None:
    images = torch.rand(3, 2, 16, 32) * 2 - 1
    ours = resize_images(images, 0.5, 8)
    means = images.unflatten(3, (16, 2)).unflatten(2, (8, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(ours, means)
    assert images.min() <= ours.min() <= ours.max() <= images.max()
    assert resize_images(images, 16, 8) is images


def test_resize_refuses_other_shapes() -> None:
    with pytest.raises(ConfigError, match=r"\(2, 8, 8\)"):
        resize_images(torch.zeros(2, 8, 8), 0.5, 8)


def test_the_scheduler_follows_its_stages() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    config = GrowthConfig(
        num_stages=3,
        min_trainable=0.5,
        stage_embedding=False,
        resolutions=(0.5, 0.75, 1.0),
        resolution_multiple=4,
        order="interleaved",
        direction="unfreeze",
    )
    growth = GrowthScheduler(model, config, blocks=["*"])
    growth.prepare(model, num_training_steps=3)
    images, sizes = torch.rand(1, 3, 16, 16), []
    for _ in range(3):
        sizes.append((growth.resolution, growth.resize(images).shape[-1]))
        growth.step()
    assert sizes == [(0.5, 8), (0.75, 12), (1.0, 16)]
    assert growth.resize(images) is images
