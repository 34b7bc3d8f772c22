"""Buckets on two ranks: the caches that they fill together, and three epochs. See `test_buckets_ddp.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from rank_tools import finish

from autoprog_diffusion.data.bucket_plan import place_images
from autoprog_diffusion.data.image_sizes import measure_images
from autoprog_diffusion.data.images import ImageSettings
from autoprog_diffusion.data.latents import Latents
from autoprog_diffusion.training.build import make_loader
from autoprog_diffusion.training.recipe_arguments import Arguments, DataArguments, TrainArguments


SHAPES = [(32, 32), (30, 50), (60, 25)]
COUNT = 28


def pictures() -> datasets.Dataset:
    random = np.random.default_rng(0)
    images = []
    for row in range(COUNT):
        height, width = SHAPES[row % len(SHAPES)]
        images.append(Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)))
    texts = [str(row) for row in range(COUNT)]
    return datasets.Dataset.from_dict({"image": images, "text": texts}).cast_column("image", datasets.Image())


def epochs_of(accelerator: Accelerator, data: datasets.Dataset, plan: Any, incomplete: Any) -> dict[str, Any]:
    """Items of this rank's batches in three epochs, and those of the second one from its third batch on."""
    args = Arguments(data=DataArguments(incomplete_batches=incomplete), train=TrainArguments(train_batch_size=2))
    loader = make_loader(data, args, 32, plan=plan, processes=accelerator.num_processes)
    rows: Any = loader.dataset
    left = vars(loader.batch_sampler.left)  # type: ignore[union-attr]
    prepared = accelerator.prepare(loader)
    epochs = []
    for epoch in range(3):
        prepared.set_epoch(epoch)
        rows.epoch = epoch
        epochs.append([batch["item"].tolist() for batch in prepared])
    rows.epoch = 1
    rest = [batch["item"].tolist() for batch in accelerator.skip_first_batches(prepared, 2)]
    return {"epochs": epochs, "rest": rest, "left": left, "places": plan.places.tolist()}


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    accelerator = Accelerator(cpu=True)
    data = pictures()
    sizes = measure_images(data, folder / "cache", accelerator)[torch.arange(COUNT)]
    plan = place_images(sizes, {16: 4, 32: 8}, 2.0).plan
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
                        up_block_types=("UpDecoderBlock2D",) * 2)  # fmt: skip
    latents = Latents(
        vae, data, accelerator, resolution=32, folder=folder / "cache", images=ImageSettings(), plan=plan
    )
    encoded: list[int] = []
    encode = latents._encode
    latents._encode = lambda rows, *size: encoded.extend(rows[list(size[-1])].tolist()) or encode(rows, *size)  # type: ignore[method-assign]
    growth: Any = SimpleNamespace(config=SimpleNamespace(resolution_multiple=4), resolution=1.0)
    latents.enter_stage(growth)
    drawn = []
    for items in plan.groups(torch.arange(len(plan)), 100):
        batch = {"index": plan.rows[items], "item": items}
        drawn.append(float(latents.draw(batch, torch.zeros_like).double().sum()))
    finish(
        {
            "encoded": len(encoded),
            "drawn": drawn,
            "files": sorted(path.name for path in (folder / "cache").iterdir()),
            "items": len(plan),
            "drop": epochs_of(accelerator, data, plan, "drop"),
            "fill": epochs_of(accelerator, data, plan, "fill"),
        }
    )


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
