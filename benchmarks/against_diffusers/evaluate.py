"""The held-out loss of a saved pipeline, by formulas of this file alone: the same noise and times for every pipeline.

python benchmarks/against_diffusers/evaluate.py CASE PIPELINE IMAGES
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusion3Pipeline, StableDiffusionPipeline
from PIL import Image
from torch import Tensor


DRAWS = 4  # of noise and time, per image
BATCH = 32


def held_out(folder: Path) -> tuple[Tensor, list[str]]:
    """Images (N, 3, H, W) in [-1, 1] and their captions."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    pixels = []
    for row in rows:
        image = Image.open(folder / row["file_name"]).convert("RGB")
        pixels.append(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 127.5 - 1)
    return torch.stack(pixels), [row["text"] for row in rows]


def times(count: int, draw: int) -> Tensor:
    """(count,) times in (0, 1), spread evenly, in an order of their own for every draw."""
    generator = torch.Generator().manual_seed(draw)
    order = torch.randperm(count, generator=generator)
    return (order + torch.rand(count, generator=generator)) / count


class StableDiffusion:
    """Noise prediction, unweighted."""

    def __init__(self, folder: str) -> None:
        self.pipe: Any = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        self.scheduler: Any = DDPMScheduler.from_config(self.pipe.scheduler.config)

    def clean(self, pixels: Tensor) -> Tensor:
        return self.pipe.vae.encode(pixels).latent_dist.mean * self.pipe.vae.config.scaling_factor

    def losses(self, clean: Tensor, captions: list[str], noise: Tensor, time: Tensor) -> Tensor:
        timesteps = (time * self.scheduler.config.num_train_timesteps).long()
        length = self.pipe.tokenizer.model_max_length
        ids = self.pipe.tokenizer(captions, padding="max_length", max_length=length, truncation=True)["input_ids"]
        text = self.pipe.text_encoder(torch.tensor(ids))[0]
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        found = self.pipe.unet(noisy, timesteps, text).sample
        target = noise
        if self.scheduler.config.prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(clean, noise, timesteps)
        return (found - target).square().flatten(1).mean(1)


class StableDiffusion3:
    """Velocity of the straight path from an image to noise; the logit of a time is normal, as in training."""

    def __init__(self, folder: str) -> None:
        self.pipe: Any = StableDiffusion3Pipeline.from_pretrained(folder)

    def clean(self, pixels: Tensor) -> Tensor:
        config = self.pipe.vae.config
        return (self.pipe.vae.encode(pixels).latent_dist.mean - config.shift_factor) * config.scaling_factor

    def losses(self, clean: Tensor, captions: list[str], noise: Tensor, time: Tensor) -> Tensor:
        text, _, pooled, _ = self.pipe.encode_prompt(
            captions, None, None, do_classifier_free_guidance=False, max_sequence_length=16
        )
        time = torch.special.ndtri(time).sigmoid()
        mix = time.view(-1, 1, 1, 1)
        found = self.pipe.transformer(
            hidden_states=(1 - mix) * clean + mix * noise,
            timestep=1000 * time,
            encoder_hidden_states=text,
            pooled_projections=pooled,
        ).sample
        return (found - (noise - clean)).square().flatten(1).mean(1)


KINDS: dict[str, Any] = {"sd": StableDiffusion, "sd3": StableDiffusion3}


@torch.no_grad()
def evaluate(case: str, pipeline: str, images: Path) -> float:
    """Mean loss over images and draws."""
    model = KINDS[case](pipeline)
    pixels, captions = held_out(images)
    clean = model.clean(pixels)
    losses = []
    for draw in range(DRAWS):
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1000 + draw))
        time = times(len(clean), draw)
        for part in torch.arange(len(clean)).split(BATCH):
            texts = [captions[index] for index in part.tolist()]
            losses.append(model.losses(clean[part], texts, noise[part], time[part]))
    return float(torch.cat(losses).mean())


if __name__ == "__main__":
    _, case, pipeline, images = sys.argv
    print(json.dumps({"loss": evaluate(case, pipeline, Path(images))}))
