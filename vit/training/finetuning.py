"""One run of `vit/finetune.py`: its arguments, and a pretrained model in the pretraining loop."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import tyro
from accelerate import Accelerator
from accelerate.utils import set_seed

from autoprog_diffusion.growth import GrowthConfig, GrowthError

from ..models import ModelError, check_size, size_multiple
from ..pretrained import fit_head, load_pretrained
from ..resolution import image_size
from .arguments import Arguments, DataArguments, OutputArguments, TrainArguments, check_arguments
from .augment_settings import AugmentSettings
from .loading import load_data
from .loop import Trainer
from .run import begin
from .run import run as run_training
from .unfreezing import Unfreezing


@dataclass(frozen=True)
class ModelArguments:
    """Model."""

    model: str = ""
    """A folder that vit/pretrain.py, timm or transformers wrote, timm:<architecture> or transformers:<Hub name>."""
    img_size: int | None = None
    """Side of the images in the last stage, in pixels [what the model was built for]."""
    drop_path: float = 0.0
    """Rate of stochastic depth of the last block, in the last stage."""


@dataclass(frozen=True)
class UnfreezeArguments:
    """Progressive unfreezing."""

    growth: Literal["on", "off"] = "on"
    """off is full fine-tuning in the same loop."""
    num_stages: int = 3
    """Number of stages; the last one (with --direction freeze the first) trains the whole model."""
    order: Literal["suffix", "interleaved", "prefix"] = "suffix"
    """Which blocks of the fixed schedule train first."""
    min_trainable: float = 0.25
    """Fraction of the blocks that trains in the smallest stage of the fixed schedule."""
    direction: Literal["unfreeze", "freeze"] = "unfreeze"
    """unfreeze ends with the whole model; freeze, with --search none, starts with it and freezes block after block."""
    search: Literal["zero_shot", "none"] = "none"
    """Who chooses the blocks of a stage: the fixed schedule, or training-free scores of recorded steps."""
    search_objective: Literal["gain_per_cost", "rank_vote", "random", "fixed"] = "gain_per_cost"
    """Expected fall of the loss per cost, the paper's vote, or baselines."""
    search_cost: Literal["flops", "measured"] = "flops"
    """Cost of a candidate: counted, the same in every run, or measured on this machine."""
    search_orders: tuple[Literal["suffix", "interleaved", "prefix"], ...] = ("suffix", "interleaved")
    """Orders whose levels are candidates."""
    search_batches: int = 8
    """Steps that a search records; as many train the head alone before the first search."""
    resolutions: tuple[int, ...] | None = None
    """Side of the images in every stage, in pixels, with --search none [full resolution]."""
    boundaries: tuple[float, ...] | None = None
    """First step of every stage but the first, as fractions of the run [equal stages]."""


@dataclass(frozen=True)
class FinetuneArguments:
    """All groups of arguments; the loop reads them as it reads the pretraining's."""

    model: tyro.conf.OmitArgPrefixes[ModelArguments] = field(default_factory=ModelArguments)
    data: tyro.conf.OmitArgPrefixes[DataArguments] = field(default_factory=DataArguments)
    train: tyro.conf.OmitArgPrefixes[TrainArguments] = field(
        default_factory=lambda: TrainArguments(epochs=20, batch_size=64, lr=5e-4, warmup_epochs=1.0)
    )
    augment: tyro.conf.OmitArgPrefixes[AugmentSettings] = field(
        default_factory=lambda: AugmentSettings(scale=(0.5, 1.0), mixup=0.0, cutmix=0.0, reprob=0.0)
    )
    growth: tyro.conf.OmitArgPrefixes[UnfreezeArguments] = field(default_factory=UnfreezeArguments)
    output: tyro.conf.OmitArgPrefixes[OutputArguments] = field(
        default_factory=lambda: OutputArguments(output_dir="vit-finetuned")
    )


def parse(argv: Sequence[str], description: str | None = None) -> FinetuneArguments:
    """The arguments of a command line.

    Raises:
        ConfigError: A value is not allowed.
    """
    args = tyro.cli(FinetuneArguments, args=list(argv), description=description)
    check_arguments(Arguments(data=args.data, train=args.train, augment=args.augment, output=args.output))
    return args


def main(argv: Sequence[str], description: str | None = None) -> None:
    """Run a command line; an error of ours ends it with one line."""
    try:
        run(parse(argv, description))
    except GrowthError as error:
        sys.exit(f"error: {error}")


def run(args: FinetuneArguments) -> Trainer:
    """Train, and leave the model, `growth.json`, `timeline.png` and printed tables.

    Raises:
        GrowthError: Something does not fit; the message names the value and the fix.
    """
    return run_training(as_pretraining(args), lambda _, accelerator: get_ready(args, accelerator))


def get_ready(args: FinetuneArguments, accelerator: Accelerator) -> Trainer:
    """Everything before the first step: model, data, growth, trainer, resumed state, trackers."""
    set_seed(args.train.seed)  # the same new head on every rank
    model = load_pretrained(args.model.model)
    size = args.model.img_size or image_size(model)
    if size is None:
        raise ModelError(f"--img_size is missing: {type(model).__name__} does not say for which it was built.")
    check_size(model, size)
    shared = as_pretraining(replace(args, model=replace(args.model, img_size=size)))
    data = load_data(shared, multiple=size_multiple(model), hold_out=False)
    fit_head(model, data.classes)
    config = growth_config(args, size_multiple(model))
    growth = Unfreezing(model, config, size, args.train.model_ema_decay, accelerator)
    set_seed(args.train.seed, device_specific=True)
    trainer = Trainer(model, growth, data, shared, accelerator)
    begin(trainer, as_pretraining(args), accelerator)
    return trainer


def growth_config(args: FinetuneArguments, multiple: int) -> GrowthConfig:
    """Growth settings of the arguments; `--growth off` is one stage that trains everything."""
    growth = args.growth
    if growth.growth == "off":
        return GrowthConfig(num_stages=1, min_trainable=1.0, stage_embedding=False)
    return GrowthConfig(
        num_stages=growth.num_stages,
        order=growth.order,
        min_trainable=growth.min_trainable,
        direction=growth.direction,
        stage_embedding=False,
        resolutions=growth.resolutions,
        resolution_multiple=multiple,
        boundaries=growth.boundaries,
        search=growth.search,
        search_objective=growth.search_objective,
        search_cost=growth.search_cost,
        search_orders=growth.search_orders,
        search_batches=growth.search_batches,
        search_seed=args.train.seed,
    )


def as_pretraining(args: FinetuneArguments) -> Arguments:
    """The same arguments as those of the pretraining loop, which reads nothing else of them."""
    return cast(Arguments, args)
