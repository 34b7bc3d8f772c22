"""`train` of `vit/asvit.py`: the pretraining loop of this package with tokens that become smaller."""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import set_seed

from autoprog_diffusion.training.output import RUN_FILE, write_text_atomically

from ..arguments import Arguments, GrowthArguments, ModelArguments, check_arguments
from ..data import load_data
from ..loop import Trainer
from ..report import write_report
from ..retoken_growth import RetokenConfig, RetokenGrowth
from ..run import make_accelerator, open_output
from .arguments import TrainArguments
from .genotype import Genotype
from .model import AsViT


if TYPE_CHECKING:
    from accelerate import Accelerator

SMALLEST_STEP = 32  # what four stages need: 4 pixels a token, halved three times


class RetokenTrainer(Trainer):
    """The pretraining loop, in which the cost of a step depends on the stride too."""

    def _enter_shape(self) -> None:
        self.log.flops.clear()  # kept by depth and resolution, which stay
        super()._enter_shape()


def run_training(args: TrainArguments, genotype: Genotype) -> RetokenTrainer:
    """Train a network, and leave it with `growth.json`, `timeline.png` and a printed table.

    Raises:
        GrowthError: Something does not fit; the message names the value and the fix.
    """
    clock = [time.perf_counter()]
    genotype.check(args.img_size)
    shared = as_pretraining(args, genotype)
    check_arguments(shared)
    accelerator, output = make_accelerator(shared), Path(args.output.output_dir)
    open_output(output, shared, accelerator)
    trainer = get_ready(args, shared, genotype, accelerator)
    clock.append(time.perf_counter())
    trainer.train()
    trainer.record_validation()
    clock.append(time.perf_counter())
    trainer.finish()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with trainer.growth.averaged() if args.train.model_ema else nullcontext():
            trainer.bare.save_pretrained(output, trainer.data.classes)  # type: ignore[operator]
        clock.append(time.perf_counter())
        phases = ("getting ready", "training and validation", "saving")
        seconds = {name: late - early for name, early, late in zip(phases, clock, clock[1:])}
        write_report(output, trainer.growth, trainer.log, seconds)
        stages = [f"{record.stride} pixels from step {record.step}" for record in trainer.growth.history]
        print(f"tokens: {', '.join(stages)}. The model, timeline.png and growth.json are in {output}/")
    accelerator.end_training()
    return trainer


def get_ready(args: TrainArguments, shared: Arguments, genotype: Genotype, accelerator: Accelerator) -> RetokenTrainer:
    """Everything before the first step: data, network, growth, trainer, resumed state, trackers."""
    set_seed(args.train.seed)
    data = load_data(shared, multiple=SMALLEST_STEP, hold_out=False)
    set_seed(args.train.seed)  # the same weights on every rank, whatever the data drew
    model = AsViT(genotype, len(data.classes), args.img_size, drop_path=args.drop_path)
    config = retoken_config(args)
    growth = RetokenGrowth(model, config, args.img_size, sum(genotype.depths), accelerator)
    set_seed(args.train.seed, device_specific=True)
    trainer = RetokenTrainer(model, growth, data, shared, accelerator)
    wanted = args.output.resume_from_checkpoint
    if wanted and not trainer.resume(wanted):
        accelerator.print("no complete checkpoint yet: starting from the beginning.")
    if accelerator.is_main_process:
        settings = {key: str(value) for key, value in config.to_dict().items()}  # trackers take no lists
        accelerator.init_trackers(args.output.tracker_project_name, config=settings)
        text = json.dumps(dataclasses.asdict(shared), indent=2)
        write_text_atomically(Path(args.output.output_dir) / RUN_FILE, text + "\n")
    return trainer


def retoken_config(args: TrainArguments) -> RetokenConfig:
    """Strides and boundaries of the arguments; one stage without re-tokenization."""
    if args.retokenization == "off":
        return RetokenConfig((None,), (), ema_decay=args.train.model_ema_decay)
    return RetokenConfig(args.strides, args.boundaries, ema_decay=args.train.model_ema_decay)


def as_pretraining(args: TrainArguments, genotype: Genotype) -> Arguments:
    """The arguments in the groups of the pretraining loop; they also tell two runs apart."""
    strides = args.strides if args.retokenization == "on" else ()
    return Arguments(
        model=ModelArguments(
            model=str(genotype),
            model_kwargs={f"stride_{stage}": stride for stage, stride in enumerate(strides)},
            img_size=args.img_size,
            drop_path=args.drop_path,
        ),
        data=args.data,
        train=args.train,
        augment=args.augment,
        growth=GrowthArguments(growth=args.retokenization, boundaries=args.boundaries, search="fixed"),
        output=args.output,
    )
