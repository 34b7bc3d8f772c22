"""One pretraining run: get ready, train, and write the results."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, set_seed

from autoprog_diffusion.files import write_text_atomically
from autoprog_diffusion.growth.errors import GrowthError, StateError
from autoprog_diffusion.training.output import RUN_FILE, check_output_dir

from ..autoprog_one.config import ViTGrowthConfig
from ..autoprog_one.scheduler import ViTGrowth
from ..models import build_model, save_model, size_multiple
from .arguments import Arguments, parse
from .loading import load_data
from .loop import Trainer
from .report import write_report


def make_accelerator(args: Arguments) -> Accelerator:
    """The run's accelerator; on a machine without a GPU it also works under torchrun, over gloo."""
    output = Path(args.output.output_dir)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.train.grad_accum_steps, sync_with_dataloader=False
        ),
        mixed_precision=args.train.mixed_precision,
        log_with=None if args.output.report_to == "none" else args.output.report_to,
        project_config=ProjectConfiguration(str(output), logging_dir=str(output / args.output.logging_dir)),
    )
    if accelerator.is_main_process:
        logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
        for noisy in ("accelerate", "httpx", "PIL", "matplotlib", "timm"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
    return accelerator


def open_output(output: Path, args: Arguments, accelerator: Accelerator) -> None:
    """Refuse a folder that cannot be used, or that holds another run than the one to resume, before any work.

    Raises:
        OutputError: It is not usable, or holds a run that is neither resumed nor overwritten.
        StateError: It holds a run with other settings.
    """
    resume = args.output.resume_from_checkpoint is not None
    if accelerator.is_main_process:
        check_output_dir(output, resume=resume, overwrite=args.output.overwrite_output_dir)
        if resume and (output / RUN_FILE).exists():
            check_same_run(json.loads((output / RUN_FILE).read_text(encoding="utf-8")), args)
    accelerator.wait_for_everyone()


def check_same_run(earlier: dict[str, Any], args: Arguments) -> None:
    """Refuse to resume under settings that change what is trained; those of the output may change.

    Raises:
        StateError: The message lists the flags that differ.
    """
    now = json.loads(json.dumps(dataclasses.asdict(args)))
    groups = [group for group in now if group != "output"]
    free = ("workers",)
    wrong = [
        f"--{name} was {earlier.get(group, {}).get(name)!r}, now {value!r}"
        for group in groups
        for name, value in now[group].items()
        if name not in free and earlier.get(group, {}).get(name) != value
    ]
    if wrong:
        raise StateError(
            f"the run in {args.output.output_dir} had another preset or other flags: {'; '.join(wrong)}. Resume with "
            "its own, or choose another --output_dir."
        )


def get_ready(args: Arguments, accelerator: Accelerator) -> Trainer:
    """Everything before the first step: data, model, growth, trainer, resumed state, trackers."""
    set_seed(args.train.seed)  # the same weights on every rank
    multiple = size_multiple(_model(args, 2))
    config = growth_config(args)
    data = load_data(args, multiple=multiple, hold_out=config.search in ("one_shot", "zero_shot"))
    set_seed(args.train.seed)
    model = _model(args, len(data.classes))
    growth = ViTGrowth(model, config, accelerator)
    set_seed(args.train.seed, device_specific=True)
    trainer = Trainer(model, growth, data, args, accelerator)
    begin(trainer, args, accelerator)
    return trainer


def begin(trainer: Trainer, args: Arguments, accelerator: Accelerator) -> None:
    """Load the checkpoint to resume, if one is asked for; start the trackers; note the settings for a later resume."""
    wanted = args.output.resume_from_checkpoint
    if wanted and not trainer.resume(wanted):
        accelerator.print("no complete checkpoint yet: starting from the beginning.")
    if accelerator.is_main_process:
        settings = {key: str(value) for key, value in trainer.growth.config.to_dict().items()}  # they take no lists
        accelerator.init_trackers(args.output.tracker_project_name, config=settings)
        text = json.dumps(dataclasses.asdict(args), indent=2)
        write_text_atomically(Path(args.output.output_dir) / RUN_FILE, text + "\n")


def growth_config(args: Arguments) -> ViTGrowthConfig:
    """Growth settings of the arguments; `--growth off` is one stage of the whole model."""
    growth = args.growth
    shared = {"ema_decay": args.train.model_ema_decay, "seed": args.train.seed}
    if growth.growth == "off":
        return ViTGrowthConfig(num_stages=1, min_depth=1.0, search="fixed", **shared)
    return ViTGrowthConfig(
        num_stages=growth.num_stages,
        min_depth=growth.min_depth,
        resolutions=growth.resolutions,
        min_resolution=growth.min_resolution,
        search=growth.search,
        operator=growth.operator,
        optimizer_state=growth.optimizer_state,
        search_steps=growth.search_steps if growth.search_steps < 1 else int(growth.search_steps),
        evaluations=growth.evaluations,
        search_cost=growth.search_cost,
        boundaries=growth.boundaries,
        **shared,
    )


def _model(args: Arguments, num_classes: int) -> torch.nn.Module:
    return build_model(
        args.model.model, num_classes=num_classes, image_size=args.model.img_size, **args.model.model_kwargs
    )


def run(
    args: Arguments,
    get_ready: Callable[[Arguments, Accelerator], Trainer] = get_ready,
    save: Callable[..., object] = save_model,
) -> Trainer:
    """Train, and leave the model, `growth.json`, `timeline.png` and a printed table.

    Args:
        args: All arguments.
        get_ready: Makes the trainer; another one for another model, or another way to grow.
        save: `save(model, folder, labels=...)` writes the trained model, with the names of its classes.

    Raises:
        GrowthError: Something does not fit; the message names the value and the fix.
    """
    clock = [time.perf_counter()]
    output, accelerator = Path(args.output.output_dir), make_accelerator(args)
    open_output(output, args, accelerator)
    trainer = get_ready(args, accelerator)
    clock.append(time.perf_counter())
    trainer.train()
    trainer.record_validation()
    clock.append(time.perf_counter())
    trainer.finish()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with trainer.growth.averaged() if args.train.model_ema else nullcontext():
            save(trainer.bare, output, labels=trainer.data.classes)
        clock.append(time.perf_counter())
        phases = ("getting ready", "training and validation", "saving")
        seconds: dict[str, float] = dict(zip(phases, (later - earlier for earlier, later in zip(clock, clock[1:]))))
        write_report(output, trainer.growth, trainer.log, seconds)
        print(f"the model, timeline.png and growth.json are in {output}/")
    accelerator.end_training()
    return trainer


def main(argv: Sequence[str], description: str | None = None) -> None:
    """Run a command line; an error of ours ends it with one line."""
    try:
        run(parse(argv, description))
    except GrowthError as error:
        sys.exit(f"error: {error}")
