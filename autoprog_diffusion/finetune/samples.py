"""Pictures: a grid of the same prompts and seeds under several models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image


def sample_images(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    size: int,
    steps: int,
    guidance: float,
    seed: int,
) -> list[Image.Image]:
    """One image per prompt, by DDIM, every prompt with a seed of its own (`seed`, `seed + 1`, ...).

    The modules' training mode and the global random state are left as they were.

    Args:
        pipeline: A Stable-Diffusion-class pipeline, on `device`.
        prompts: What to draw.
        size: Side of the images in pixels.
        steps: Denoising steps.
        guidance: Scale of classifier-free guidance.
        seed: Of the first prompt.
    """
    modes = [(module, module.training) for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder)]
    scheduler = pipeline.scheduler
    pipeline.scheduler = DDIMScheduler.from_config(scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    try:
        for module, _ in modes:
            module.eval()
        generators = [torch.Generator("cpu").manual_seed(seed + index) for index in range(len(prompts))]
        with torch.no_grad(), torch.random.fork_rng():
            return pipeline(
                list(prompts),
                height=size,
                width=size,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=generators,
            ).images
    finally:
        pipeline.scheduler = scheduler
        for module, mode in modes:
            module.train(mode)


def save_grid(path: Path, prompts: Sequence[str], rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> None:
    """Save a picture with one column per prompt and one labelled row per model.

    Args:
        path: PNG file.
        prompts: Titles of the columns.
        rows: Label and images of every row.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.15 * len(prompts) + 1.0, 1.2 * len(rows) + 0.7), dpi=110)
    axes = figure.subplots(len(rows), len(prompts), squeeze=False)
    for line, (label, images) in zip(axes, rows):
        for axis, image in zip(line, images):
            axis.imshow(image, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color("0.85")
        line[0].set_ylabel(label, fontsize=9)
    for axis, prompt in zip(axes[0], prompts):
        axis.set_title(_wrap(prompt), fontsize=7, parse_math=False)
    figure.tight_layout(pad=0.4)
    figure.savefig(path)


def save_images(folder: Path, images: Sequence[Image.Image]) -> None:
    """Save images as `folder/0.png`, `folder/1.png`, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        image.save(folder / f"{index}.png")


def load_images(folder: Path, count: int) -> list[Image.Image]:
    """Read `count` images that `save_images` wrote; an empty list where it wrote fewer."""
    if not all((folder / f"{index}.png").exists() for index in range(count)):
        return []
    return [Image.open(folder / f"{index}.png").convert("RGB") for index in range(count)]


def _wrap(prompt: str, width: int = 16, lines: int = 3) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(prompt, width, max_lines=lines, placeholder=" ..."))
