"""`train` of `vit/asvit.py`: pretraining of an As-ViT network, with tokens that become smaller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import set_seed
from torch import nn

from autoprog_diffusion.command_line import Flag
from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.training.arguments import take_flag
from autoprog_diffusion.training.run import run
from autoprog_diffusion.training.run_file import with_run_file

from ..autoprog_one.config import ViTGrowthConfig
from ..autoprog_one.scheduler import ViTGrowth
from ..training.loading import check_sizes, load_data
from ..training.pretraining import PretrainTrainer
from ..training.trainer import ViTScript, ViTTrainer
from .arguments import PRESETS, TrainArguments, parse
from .genotype import Genotype
from .model import AsViT


if TYPE_CHECKING:
    from accelerate import Accelerator

TRAIN = "train"  # the sub-command
SIZE_MULTIPLE = 32  # four stages: 4 pixels a token, halved three times


class Retokenization(ViTScript[TrainArguments]):
    """`vit/asvit.py train`."""

    name = "asvit"
    own_flags = (Flag("preset", choices=tuple(sorted(PRESETS))),)

    def arguments(self) -> type:
        return TrainArguments

    def parse(self, argv: Sequence[str], description: str | None = None) -> TrainArguments:
        args = parse([TRAIN, *argv], description)
        assert isinstance(args, TrainArguments)
        return args

    def get_ready(self, args: TrainArguments, accelerator: Accelerator) -> PretrainTrainer:
        size = args.img_size
        genotype = Genotype.parse(args.genotype)
        genotype.check(size)
        check_sizes(size, (), SIZE_MULTIPLE)
        data = load_data(args, size=size, accelerator=accelerator)
        set_seed(args.train.seed)  # the same weights on every rank, whatever the data drew
        model = AsViT(
            genotype,
            num_classes=len(data.classes),
            image_size=size,
            drop_path=args.drop_path,
        )
        growth = ViTGrowth(model, retoken_config(args), accelerator)
        return PretrainTrainer(
            model,
            growth,
            data,
            args,
            accelerator,
            image_size=size,
            drop_path=args.drop_path,
        )

    def save_model(self, model: nn.Module, output: Path, classes: tuple[str, ...]) -> None:
        assert isinstance(model, AsViT)
        model.save_pretrained(output, labels=classes)


def with_flags_of_file(argv: Sequence[str]) -> list[str]:
    """A command line with the flags of the `--config` file of a training in front, those that it does not give itself.

    Args:
        argv: Sub-command and flags; a `--config` without a sub-command is of `train`.

    Raises:
        ConfigError: The file cannot be read, is another recipe's, or holds what is no flag.
    """
    config, _ = take_flag(argv, "config")
    if config is None:
        return list(argv)
    words = list(argv) if not argv[0].startswith("-") else [TRAIN, *argv]
    if words[0] != TRAIN:
        raise ConfigError(f"--config is for {TRAIN}, not for {words[0]}: give the flags of {words[0]} themselves.")
    script = Retokenization()
    return [TRAIN, *with_run_file(words[1:], script.name, script.flags())]


def run_training(args: TrainArguments, genotype: Genotype, words: Sequence[str] | None = None) -> ViTTrainer:
    """Train a network, and leave it with `growth.json`, `timeline.png` and a printed table.

    Args:
        args: Of the training.
        genotype: The network.
        words: Flags of the command line, which are written as `run.yaml`; nothing is written without them.

    Raises:
        GrowthError: Something does not fit; the message names the value and the fix.
    """
    # By its name of record: what the folder of a search holds may change before the run is resumed.
    args = replace(args, genotype=str(genotype), member=-1)
    if words is not None:
        words = [*words, f"--genotype={genotype}", "--member=-1"]
    trainer = run(Retokenization(), args, words)
    history = [record.to_dict() for record in trainer.growth.history]
    stages = [f"{record['stride']} pixels from step {record['step']}" for record in history]
    trainer.accelerator.print(f"tokens: {', '.join(stages)}.")
    return trainer


def retoken_config(args: TrainArguments) -> ViTGrowthConfig:
    """Growth of the tokens alone, by the strides and boundaries of the arguments; one stage without it."""
    strides = args.strides if args.retokenization == "on" else (None,)
    return ViTGrowthConfig(
        num_stages=len(strides),
        min_depth=1.0,
        min_resolution=1.0,
        search="fixed",
        ema_decay=args.train.model_ema_decay,
        boundaries=args.boundaries if args.retokenization == "on" else (),
        strides=strides,
    )
