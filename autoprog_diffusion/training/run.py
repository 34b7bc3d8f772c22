"""One run of a recipe: get ready, train, and write the results."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import set_seed

from autoprog_diffusion.data.sources import check_batch
from autoprog_diffusion.files import write_text_atomically
from autoprog_diffusion.growth import ConfigError, GrowthError, GrowthScheduler

from .arguments import Arguments
from .build import growth_config, make_accelerator
from .output import RUN_FILE, check_output_dir
from .recipe import Recipe
from .report import write_report
from .samples import load_images, save_grid, save_images
from .trainer import Trainer


if TYPE_CHECKING:
    from accelerate import Accelerator

PHASES = ("getting ready", "training", "saving and pictures")


def main(recipe: Recipe, argv: Sequence[str], description: str | None = None) -> None:
    """Run a recipe from a command line; an error of ours ends it with one line."""
    try:
        run(recipe, recipe.parse(argv, description))
    except GrowthError as error:
        sys.exit(f"error: {error}")


def run(recipe: Recipe, args: Arguments) -> None:
    """Train, and leave pipeline, pictures, `growth.json` and a printed table.

    Raises:
        GrowthError: Something does not fit; the message names the value and the fix.
    """
    clock = [time.perf_counter()]
    output, accelerator = Path(args.output.output_dir), make_accelerator(args)
    open_output(output, args, accelerator)
    pipeline = recipe.load(args)
    trainer, pictures = get_ready(recipe, pipeline, args, accelerator)
    if accelerator.is_main_process and trainer.step == 0:
        pictures.save_before()
    clock.append(time.perf_counter())
    trainer.train(pictures.validate if accelerator.is_main_process else None)
    clock.append(time.perf_counter())
    trainer.finish()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        recipe.save(pipeline, output)
        pictures.save_before_after()
        clock.append(time.perf_counter())
        seconds = (later - earlier for earlier, later in zip(clock, clock[1:]))
        write_report(output, trainer.growth, trainer.log, dict(zip(PHASES, seconds)))
        print(f"what was trained, its pictures and growth.json are in {output}/")
    accelerator.end_training()


def open_output(output: Path, args: Arguments, accelerator: Accelerator) -> None:
    """Refuse a folder that cannot be used, before anything is loaded."""
    if accelerator.is_main_process:
        resume = args.output.resume_from_checkpoint is not None
        check_output_dir(output, resume=resume, overwrite=args.output.overwrite_output_dir)
    accelerator.wait_for_everyone()


def get_ready(recipe: Recipe, pipeline: Any, args: Arguments, accelerator: Accelerator) -> tuple[Trainer, Pictures]:
    """Everything before the first step: data, growth, trainer, resumed state, trackers."""
    denoiser = recipe.denoiser(pipeline)
    resolution = args.data.resolution or recipe.resolution(pipeline)
    config, plan = growth_config(args, multiple=recipe.multiple(pipeline))
    check_resolution(resolution, recipe.multiple(pipeline))
    data = recipe.data(args, pipeline, resolution, accelerator)
    loader = recipe.loader(data, args, resolution)
    check_batch(len(loader.dataset), args.train.train_batch_size * accelerator.num_processes)  # type: ignore[arg-type]
    if args.train.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()  # type: ignore[operator]

    set_seed(args.train.seed, device_specific=True)
    growth = GrowthScheduler(denoiser, config, accelerator)
    task = recipe.task(pipeline, data, args, accelerator, resolution)
    trainer = Trainer(denoiser, growth, plan, task, loader, args, accelerator)
    if args.output.resume_from_checkpoint and not trainer.resume(args.output.resume_from_checkpoint):
        accelerator.print("no complete checkpoint yet: starting from the beginning.")
    if accelerator.is_main_process:
        output = Path(args.output.output_dir)
        settings = {key: str(value) for key, value in config.to_dict().items()}  # trackers take no lists
        accelerator.init_trackers(args.output.tracker_project_name, config=settings)
        growth.plan.save(output / "growth_plan.json")
        write_text_atomically(output / RUN_FILE, json.dumps(dataclasses.asdict(args), indent=2) + "\n")
    return trainer, Pictures(recipe, pipeline, args, recipe.titles(args, data), resolution)


def check_resolution(resolution: int, multiple: int) -> None:
    """Refuse a side of the images that the VAE or the denoiser cannot divide.

    Raises:
        ConfigError: The message names the multiple and the nearest size.
    """
    if resolution <= 0 or resolution % multiple:
        near = max(multiple, round(resolution / multiple) * multiple)
        raise ConfigError(
            f"--resolution {resolution} is not a multiple of {multiple} (VAE factor times patch): use {near}."
        )


class Pictures:
    """What a run draws: the same titles and seeds before, during and after training.

    Args:
        recipe: Draws.
        pipeline: As it trains.
        args: The recipe's arguments.
        titles: Of the pictures.
        size: Side of the pictures in pixels.
    """

    def __init__(self, recipe: Recipe, pipeline: Any, args: Arguments, titles: tuple[str, ...], size: int) -> None:
        self._recipe, self._pipeline, self._args = recipe, pipeline, args
        self._titles, self._size = titles, size
        self._output = Path(args.output.output_dir)

    def save_before(self) -> None:
        """Draw with the untrained pipeline; kept as files, for the end of a run that is resumed."""
        save_images(self._output / "before", self._draw())

    def validate(self, step: int) -> None:
        """Draw in the middle of training, every `--validation_steps`."""
        every = self._args.output.validation_steps
        if every and step % every == 0:
            save_grid(self._output / f"validation-{step}.png", self._titles, [(f"step {step}", self._draw())])

    def save_before_after(self) -> None:
        """Set the pictures of before and after beside the real ones."""
        old = load_images(self._output / "before", len(self._titles))  # none where a resumed run has more titles
        rows = [("before", old)] if old else []
        rows += [("after", self._draw()), *self._recipe.references(self._args, self._titles, self._size)]
        save_grid(self._output / "before_after.png", self._titles, rows)

    def _draw(self) -> list[Any]:
        return self._recipe.draw(self._pipeline, self._args, self._titles, self._size)
