"""Fine-tune a small text-to-image model in stages: one plain Accelerate loop, and the lines that freeze it.

    python recipes/minimal.py --output_dir out_minimal

takes the Stable Diffusion pipeline in `assets/`, which draws emoji in the style of Twemoji, and teaches it the style
of OpenMoji, in less than a minute on one CPU core. The result is an ordinary Diffusers pipeline. Progressive training
adds the lines that mention `growth`; the rest is any fine-tuning script. The other recipes do the same for more
models, with checkpoints, pictures and a report.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import StableDiffusionPipeline  # type: ignore[attr-defined]
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.data.emoji import emoji_dataset


TINY_SD = Path(__file__).parent / "assets" / "tiny_sd"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="out_minimal", help="folder of the fine-tuned pipeline")
    parser.add_argument("--max_train_steps", type=int, default=80, help="optimizer steps of the whole run")
    parser.add_argument("--train_batch_size", type=int, default=16, help="images in a batch")
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="highest rate of a cosine schedule")
    return parser.parse_args()


def make_batches(pipeline: StableDiffusionPipeline, batch_size: int) -> DataLoader[Any]:
    """Batches of pixels, (N, 3, 64, 64) in [-1, 1], with the token ids of their captions, (N, tokens)."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = np.stack([np.asarray(row["image"]) for row in rows])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
        tokens = pipeline.tokenizer(
            [row["text"] for row in rows], padding="max_length", truncation=True, return_tensors="pt"
        )
        return {"pixels": pixels, "ids": tokens.input_ids}

    data: Any = emoji_dataset("openmoji", size=64, split="train")
    return DataLoader(data, batch_size=batch_size, shuffle=True, drop_last=True, collate_fn=collate)


def endless(loader: Any) -> Iterator[dict[str, Tensor]]:
    """One epoch after the other."""
    while True:
        yield from loader


def denoising_loss(unet: Any, pipeline: StableDiffusionPipeline, batch: dict[str, Tensor]) -> Tensor:
    """Mean squared error of the predicted velocity at random timesteps."""
    scheduler: Any = pipeline.scheduler
    with torch.no_grad():  # the VAE and the text encoder are not trained
        latents = pipeline.vae.encode(batch["pixels"]).latent_dist.sample() * pipeline.vae.config.scaling_factor
        text = pipeline.text_encoder(batch["ids"]).last_hidden_state
    noise = torch.randn_like(latents)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    predicted = unet(noisy, timesteps, text).sample
    return F.mse_loss(predicted, scheduler.get_velocity(latents, noise, timesteps))


def main() -> None:
    """Train, average the weights, and save the pipeline."""
    args = parse_arguments()
    set_seed(0)
    accelerator = Accelerator()
    pipeline = StableDiffusionPipeline.from_pretrained(TINY_SD)
    pipeline.to(accelerator.device)
    unet = pipeline.unet.train()
    ema = EMAModel(unet.parameters(), decay=0.98)
    ema.to(accelerator.device)

    # All blocks train first, at the end a quarter of them does: `GrowthConfig()` freezes from the input on.
    growth = GrowthScheduler(unet, GrowthConfig(), accelerator)
    optimizer = torch.optim.AdamW(growth.parameters(), lr=args.learning_rate)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=5, num_training_steps=args.max_train_steps)
    loader = make_batches(pipeline, args.train_batch_size)
    unet, optimizer, loader, schedule = accelerator.prepare(unet, optimizer, loader, schedule)
    growth.prepare(unet, num_training_steps=args.max_train_steps)

    start = time.monotonic()
    losses: list[float] = []
    for step, batch in enumerate(islice(endless(loader), args.max_train_steps), start=1):
        loss = denoising_loss(unet, pipeline, batch)
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        ema.step(growth.ema_parameters())  # not unet.parameters(): frozen weights keep their average
        growth.step()  # enters the next stage when its time has come
        losses.append(loss.item())
        if step % 10 == 0 or step == args.max_train_steps:
            recent = losses[-10:]
            accelerator.print(
                f"step {step}/{args.max_train_steps}: loss {sum(recent) / len(recent):.4f}, "
                f"{growth.trainable_fraction:.0%} of the parameters train, {time.monotonic() - start:.0f} s"
            )

    unet = accelerator.unwrap_model(unet)
    ema.copy_to(unet.parameters())
    growth.fold(unet)  # a plain UNet again
    if accelerator.is_main_process:
        pipeline.save_pretrained(args.output_dir)
    accelerator.end_training()


if __name__ == "__main__":
    main()
