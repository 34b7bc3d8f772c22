"""Samples of a pretrained pipeline: contact sheets, and how often a sample is the emoji of its caption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from emoji_images import SIZE, load_images
from PIL import Image


PROMPTS = (
    "grinning face", "crying face", "smiling face with sunglasses", "red heart", "pizza", "red apple",
    "strawberry", "hamburger", "dog face", "cat face", "penguin", "octopus", "rocket", "automobile",
    "sailboat", "house building", "japan flag", "france flag", "guitar", "soccer ball", "christmas tree",
    "sunflower", "police officer", "ghost", "alarm clock", "thumbs up", "crown", "key", "rainbow", "fire",
    "dolphin", "slice of pizza",
)  # fmt: skip


def sample(pipeline: StableDiffusionPipeline, prompts: list[str], guidance: float = 3.0) -> np.ndarray:
    """Draws one image per prompt, seeded by the prompt's position: floats in [0, 1] of shape (N, H, W, 3)."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    output = pipeline(
        prompts, num_inference_steps=25, guidance_scale=guidance, generator=generators, output_type="np",
        height=SIZE, width=SIZE,
    )  # fmt: skip
    return output.images


def save_sheet(pipeline: StableDiffusionPipeline, work: Path, columns: int = 8) -> None:
    """Draws ``PROMPTS`` into ``contact_sheet.png``, magnified twice."""
    images = np.pad(sample(pipeline, list(PROMPTS)), ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=0.8)
    rows = [np.concatenate(list(images[i : i + columns]), axis=1) for i in range(0, len(images), columns)]
    sheet = Image.fromarray((np.concatenate(rows) * 255).round().astype(np.uint8))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(work / "contact_sheet.png")


def save_image(image: np.ndarray, path: Path) -> None:
    """Saves an array of floats in 0..1, magnified twice."""
    sheet = Image.fromarray((image * 255).round().astype(np.uint8))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(path)


def retrieval(pipeline: StableDiffusionPipeline, count: int = 190) -> dict[str, float]:
    """Share of generated emoji whose nearest Twemoji, by squared pixel distance, is the one of their caption."""
    images, captions = load_images("twemoji")
    reference = F.avg_pool2d(images.float() / 255, 4).flatten(1)
    chosen = list(range(0, len(captions), len(captions) // count))[:count]
    output = torch.from_numpy(sample(pipeline, [captions[i] for i in chosen])).permute(0, 3, 1, 2)
    distances = torch.cdist(F.avg_pool2d(output, 4).flatten(1), reference)
    rank = (distances < distances.gather(1, torch.tensor(chosen)[:, None])).sum(1)
    return {"captions": count, "top1": (rank < 1).float().mean().item(), "top5": (rank < 5).float().mean().item()}
