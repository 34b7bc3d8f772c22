"""Pictures of several shapes with captions, and buckets for them."""

from __future__ import annotations

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autoprog_diffusion.data.bucket_plan import BucketPlan, place_images


COUNT = 26
# Heights and widths: enough of each shape for batches of four, and more.
SHAPES = [(64, 64), (60, 90), (50, 100), (120, 70), (64, 80)]


def make_pictures() -> datasets.Dataset:
    random = np.random.default_rng(0)
    images = []
    for row in range(COUNT):
        height, width = SHAPES[row % len(SHAPES)]
        coarse = Image.fromarray(random.integers(0, 256, (5, 5, 3), np.uint8))
        images.append(coarse.resize((width, height), Image.Resampling.BILINEAR))
    texts = [f"picture {'abcde'[row % 5]}" for row in range(COUNT)]
    return datasets.Dataset.from_dict({"image": images, "text": texts}).cast_column("image", datasets.Image())


def plan_of(pictures: datasets.Dataset, steps: dict[int, int] | None = None) -> BucketPlan:
    sizes = torch.tensor([[image.height, image.width] for image in pictures["image"]])
    return place_images(sizes, steps or {64: 8}, 2.0).plan


def batch_of(plan: BucketPlan, items: Tensor) -> dict[str, Tensor]:
    return {"index": plan.rows[items], "item": items}
