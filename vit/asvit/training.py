"""`train` of `vit/asvit.py`: the pretraining loop of this package with tokens that become smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate.utils import set_seed

from ..autoprog_one.config import ViTGrowthConfig
from ..autoprog_one.scheduler import ViTGrowth
from ..training.arguments import Arguments, GrowthArguments, ModelArguments, check_arguments
from ..training.loading import load_data
from ..training.loop import Trainer
from ..training.run import begin, run
from .arguments import TrainArguments
from .genotype import Genotype
from .model import AsViT


if TYPE_CHECKING:
    from accelerate import Accelerator

SIZE_MULTIPLE = 32  # what four stages need: 4 pixels a token, halved three times


class RetokenTrainer(Trainer):
    """The pretraining loop, in which the cost of a step depends on the stride too."""

    def _enter_shape(self) -> None:
        self.log.flops.clear()  # kept by depth and resolution, which stay
        super()._enter_shape()


def run_training(args: TrainArguments, genotype: Genotype) -> Trainer:
    """Train a network, and leave it with `growth.json`, `timeline.png` and a printed table.

    Raises:
        GrowthError: Something does not fit; the message names the value and the fix.
    """
    genotype.check(args.img_size)
    shared = as_pretraining(args, genotype)
    check_arguments(shared)
    trainer = run(
        shared,
        lambda shared, accelerator: get_ready(args, shared, genotype, accelerator),
        AsViT.save_pretrained,
    )
    stages = [f"{record.stride} pixels from step {record.step}" for record in trainer.growth.history]
    trainer.accelerator.print(f"tokens: {', '.join(stages)}.")
    return trainer


def get_ready(args: TrainArguments, shared: Arguments, genotype: Genotype, accelerator: Accelerator) -> RetokenTrainer:
    """Everything before the first step: data, network, growth, trainer, resumed state, trackers."""
    set_seed(args.train.seed)
    data = load_data(shared, multiple=SIZE_MULTIPLE, hold_out=False)
    set_seed(args.train.seed)  # the same weights on every rank, whatever the data drew
    model = AsViT(genotype, len(data.classes), args.img_size, drop_path=args.drop_path)
    growth = ViTGrowth(model, retoken_config(args), accelerator)
    set_seed(args.train.seed, device_specific=True)
    trainer = RetokenTrainer(model, growth, data, shared, accelerator)
    begin(trainer, shared, accelerator)
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
