"""Pictures: a grid of the same prompts and seeds under several models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from torch import nn


# A row of pictures and its label; None leaves a column out.
Row = tuple[str, Sequence[Image.Image | None]]


@contextmanager
def sampling(pipeline: Any, scheduler: Any = None) -> Iterator[None]:
    """No gradient, evaluation mode, no progress bar; modes, scheduler and global random state come back afterwards.

    A safety checker waits outside: it would black out pictures that are only looked at.

    Args:
        pipeline: Any Diffusers pipeline.
        scheduler: To sample with, instead of the pipeline's own.
    """
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    modes = [module.training for module in modules]
    own = pipeline.scheduler
    checker = getattr(pipeline, "safety_checker", None)
    pipeline.set_progress_bar_config(disable=True)
    try:
        pipeline.scheduler = own if scheduler is None else scheduler
        if checker is not None:
            pipeline.register_modules(safety_checker=None)
        for module in modules:
            module.eval()
        with torch.no_grad(), torch.random.fork_rng():
            yield
    finally:
        pipeline.scheduler = own
        if checker is not None:
            pipeline.register_modules(safety_checker=checker)
        for module, mode in zip(modules, modes):
            module.train(mode)


def seeds(first: int, count: int) -> list[torch.Generator]:
    """One generator per picture, seeded `first`, `first + 1`, ...: the same noise on any device."""
    return [torch.Generator("cpu").manual_seed(first + index) for index in range(count)]


def draw_prompts(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    size: int,
    steps: int,
    guidance: float,
    seed: int,
    scheduler: Any = None,
    **options: Any,
) -> list[Image.Image]:
    """One image per prompt, every prompt with a seed of its own (`seed`, `seed + 1`, ...).

    Args:
        pipeline: A text-to-image pipeline.
        prompts: What to draw.
        size: Side of the images in pixels.
        steps: Denoising steps.
        guidance: Scale of classifier-free guidance.
        seed: Of the first prompt.
        scheduler: Instead of the pipeline's own.
        options: Further arguments of the pipeline's call.
    """
    with sampling(pipeline, scheduler):
        return pipeline(
            list(prompts),
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=seeds(seed, len(prompts)),
            **options,
        ).images


def sample_images(pipeline: Any, prompts: Sequence[str], **settings: Any) -> list[Image.Image]:
    """Images of a Stable Diffusion or SDXL pipeline by DDIM; `settings` as `draw_prompts` takes them."""
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    return draw_prompts(pipeline, prompts, scheduler=scheduler, **settings)


def save_grid(path: Path, prompts: Sequence[str], rows: Sequence[Row]) -> None:
    """Save a picture with one column per prompt and one labelled row per model.

    Args:
        path: PNG file.
        prompts: Titles of the columns.
        rows: Label and images of every row, perhaps fewer than prompts.
    """
    from matplotlib.figure import Figure

    width = 1.15 * len(prompts) + 1.0
    height = 1.2 * len(rows) + 0.7
    figure = Figure(figsize=(width, height), dpi=110)
    axes = figure.subplots(len(rows), len(prompts), squeeze=False)
    for line, (label, images) in zip(axes, rows):
        for axis, image in zip_longest(line, images):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(color="0.85", visible=image is not None)
            if image is not None:
                axis.imshow(image, interpolation="nearest")
        line[0].set_ylabel(label, fontsize=9)
    for axis, prompt in zip(axes[0], prompts):
        axis.set_title(_wrap(prompt), fontsize=7, parse_math=False)
    figure.tight_layout(pad=0.4)
    figure.savefig(path)


class Pictures:
    """Pictures of the same titles and seeds before, during and after training.

    Args:
        folder: The run's output folder.
        titles: Titles of the pictures.
        draw: Draws one picture per title with the model as it is.
        references: Rows of real pictures of the titles, each with its label.
        writes: Whether this process writes what it draws; processes that share a sharded model all draw.
        show: Called with what is written, and with the optimizer step it was drawn after.
    """

    def __init__(
        self,
        folder: Path,
        titles: Sequence[str],
        *,
        draw: Callable[[], list[Image.Image]],
        references: Callable[[], list[Row]],
        writes: bool = True,
        show: Callable[[Sequence[Image.Image], int], object] | None = None,
    ) -> None:
        self._folder = folder
        self._titles = titles
        self._draw = draw
        self._references = references
        self._writes = writes
        self._show = show

    def save_before(self) -> None:
        """Draw with the untrained model; kept as files, for the end of a run that is resumed."""
        images = self._draw()
        if self._writes:
            save_images(self._folder / "before", images)
            self._pass_on(images, 0)

    def save_step(self, step: int) -> None:
        """Draw in the middle of training."""
        images = self._draw()
        if self._writes:
            save_grid(self._folder / f"validation-{step}.png", self._titles, [(f"step {step}", images)])
            self._pass_on(images, step)

    def save_before_after(self, step: int) -> None:
        """Set the pictures of before and after above rows of real ones; the run has ended after `step` steps."""
        after = self._draw()
        if not self._writes:
            return
        old = load_images(self._folder / "before", len(self._titles))  # none where a resumed run has more titles
        rows = [("before", old)] if old else []
        rows += [("after", after), *self._references()]
        save_grid(self._folder / "before_after.png", self._titles, rows)
        self._pass_on(after, step)

    def _pass_on(self, images: Sequence[Image.Image], step: int) -> None:
        if self._show is not None:
            self._show(images, step)


def save_images(folder: Path, images: Sequence[Image.Image]) -> None:
    """Save images as `folder/0.png`, `folder/1.png`, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        image.save(folder / f"{index}.png")


def load_images(folder: Path, count: int) -> list[Image.Image]:
    """Read `count` images that `save_images` wrote; an empty list where it wrote fewer."""
    files = [folder / f"{index}.png" for index in range(count)]
    if not all(file.exists() for file in files):
        return []
    return [Image.open(file).convert("RGB") for file in files]


def _wrap(prompt: str, width: int = 16, lines: int = 3) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(prompt, width, max_lines=lines, placeholder=" ..."))
