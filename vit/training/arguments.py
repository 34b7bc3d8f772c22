"""Command-line arguments of `vit/pretrain.py`, with timm's names, and the presets: files of flags."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from autoprog_diffusion import command_line
from autoprog_diffusion.growth.errors import ConfigError
from autoprog_diffusion.training.arguments import (
    Derived,
    OutputArguments,
    check_numbers,
    check_output,
    check_positive,
    flat,
    flat_flags,
    take_flag,
)
from autoprog_diffusion.training.flag_checks import check_not_blank, check_seed_and_finite, explicit_wins

from ..autoprog_one.config import ViTGrowthConfig
from .augment_settings import AugmentSettings
from .clock import Sched, schedule_for


PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "cpu"
POSITIVE = (
    "img_size", "batch_size", "epochs", "max_train_steps", "grad_accum_steps", "lr", "clip_grad", "search_samples",
    "max_train_samples", "opt_eps",
)  # fmt: skip
SHARES = ("hflip", "reprob", "mixup_prob", "mixup_switch_prob", "aa_scale", "drop_path_scale", "reprob_scale")
RATES = ("val_fraction", "smoothing", "drop_path", "model_ema_decay")
NOT_NEGATIVE = (
    "mixup",
    "cutmix",
    "weight_decay",
    "warmup_lr",
    "min_lr",
    "warmup_epochs",
    "warmup_steps",
    "workers",
    "memory",
)


@dataclass(frozen=True)
class ModelArguments:
    """Model."""

    model: str = "transformers:vit"
    """timm:<architecture>, transformers:vit, transformers:deit, or the folder of a saved model."""
    model_kwargs: dict[str, int] = field(default_factory=dict)
    """Sizes in the library's words, for example num_hidden_layers 12 hidden_size 96."""
    img_size: int = 224
    """Side of the images in the last stage, in pixels."""
    drop_path: float = 0.0
    """Rate of stochastic depth of the last block, in the last stage."""


@dataclass(frozen=True)
class DataArguments:
    """Data; without a name emoji in two styles, from pip packages, by Unicode's groups."""

    train_data: str | None = None
    """Folder with one folder per class (or train/ and val/ of such), .parquet, .npz, or name of a `datasets` set."""
    val_data: str | None = None
    """The same for validation [val/ of the folder, else a part of the training data]."""
    val_fraction: float = 0.1
    """Part of the training data that is held out where there is nothing to validate on."""
    image_column: str = "image"
    """Column that holds the images."""
    label_column: str = "label"
    """Column that holds the classes."""
    max_train_samples: int | None = None
    """Use only so many training images, a random choice."""
    corrupt: Literal["refuse", "skip"] = "refuse"
    """What to do with images that cannot be decoded: stop and name them, or leave them out and name them."""
    memory: int = 1024
    """Decode everything once if it fits into so many MiB; larger data is decoded by the workers as it is used."""
    workers: int = 4
    """Processes that decode images which do not fit into --memory."""


@dataclass(frozen=True)
class TrainArguments:
    """Optimisation."""

    batch_size: int = 128
    """Images per process and forward pass."""
    epochs: int = 100
    """Epochs; they win over a preset's --max_train_steps."""
    max_train_steps: int | None = None
    """Optimizer steps of the whole run; beside --epochs on the command line they win."""
    grad_accum_steps: int = 1
    """Forward passes per optimizer step."""
    opt: Literal["adamw"] = "adamw"
    """Optimizer; norms and biases are not decayed."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Decoupled weight decay."""
    opt_betas: tuple[float, float] = (0.9, 0.999)
    """Betas of AdamW."""
    opt_eps: float = 1e-8
    """Epsilon of AdamW."""
    sched: Sched = "cosine"
    """Learning rate after the warm-up, over the whole run: growth does not start it again. cosine_by_cost decays with
    what the stages cost, so that it is still high when a growing model becomes whole; auto is that in pretraining
    whose stages are known from the start, and cosine else."""
    warmup_epochs: float = 5.0
    """Epochs of linear warm-up; they win over a preset's --warmup_steps."""
    warmup_steps: int | None = None
    """Optimizer steps of linear warm-up."""
    warmup_lr: float = 1e-6
    """Learning rate at the first step of the warm-up."""
    min_lr: float = 1e-5
    """Learning rate at the end of cosine."""
    clip_grad: float | None = None
    """Clip the gradient to this norm."""
    smoothing: float = 0.1
    """Label smoothing."""
    model_ema: bool = True
    """End with the averaged weights; without, the average only serves momentum growth and the search."""
    model_ema_decay: float = 0.998
    """Decay of the average."""
    channels_last: bool = False
    """Keep images and convolutions in channels-last memory order."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Precision of the forward pass [as `accelerate config` says]."""
    seed: int = 0
    """Seed of everything random."""


@dataclass(frozen=True)
class ViTGrowthArguments(ViTGrowthConfig):
    """Progressive growth."""

    growth: Literal["on", "off"] = "on"
    """off is ordinary training in the same loop."""
    search_samples: int = 512
    """Training images that are set aside to evaluate candidates on."""
    ema_decay: Derived[float] = 0.998
    strides: Derived[tuple[int | None, ...] | None] = None
    seed: Derived[int] = 0

    def __post_init__(self) -> None:
        """Leave the checks to `growth_config`: an error while tyro parses would come in a frame of several lines."""


def output_arguments(folder: str) -> OutputArguments:
    """The defaults of output and checkpoints, in a folder."""
    return OutputArguments(output_dir=folder, checkpoints_total_limit=2, tracker_project_name="autoprog-vit")


@dataclass(frozen=True)
class SharedArguments:
    """Groups of arguments of every script that trains a vision transformer."""

    data: DataArguments = DataArguments()
    train: TrainArguments = TrainArguments()
    augment: AugmentSettings = AugmentSettings()
    output: OutputArguments = output_arguments("vit-output")
    given: Derived[tuple[str, ...]] = ()


@flat_flags
@dataclass(frozen=True)
class Arguments(SharedArguments):
    """All groups of arguments of `vit/pretrain.py`."""

    model: ModelArguments = ModelArguments()
    train: TrainArguments = TrainArguments(sched="auto")
    growth: ViTGrowthArguments = ViTGrowthArguments()
    output: OutputArguments = output_arguments("vit-pretrained")


def growth_config(args: Arguments) -> ViTGrowthConfig:
    """Growth settings of the flags; `--growth off` is one stage of the whole model.

    Raises:
        ConfigError: A value is not allowed.
    """
    settings: dict[str, Any] = {item.name: getattr(args.growth, item.name) for item in fields(ViTGrowthConfig)}
    if args.growth.growth == "off":
        settings = {"num_stages": 1, "min_depth": 1.0, "search": "fixed"}
    return ViTGrowthConfig(**{**settings, "ema_decay": args.train.model_ema_decay, "seed": args.train.seed})


def parse(argv: Sequence[str], description: str | None = None) -> Arguments:
    """The arguments of a command line: the preset's flags first, so that any flag after them wins.

    Without `--preset` and `--model` the preset is `cpu`.

    Raises:
        ConfigError: There is no such preset, or a value is not allowed.
    """
    preset, rest = take_flag(argv, "preset")
    model, _ = take_flag(rest, "model")
    if preset is None and model is None:
        preset = DEFAULT_PRESET
    words = preset_words(preset) if preset else []
    args = explicit_wins(command_line.parse(Arguments, [*words, *rest], description=description), rest)
    check_shared(args)
    sched = schedule_for(growth_config(args), args.train.sched)
    return replace(args, train=replace(args.train, sched=sched))


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.json"))


def preset_words(name: str) -> list[str]:
    """The flags of a preset as words of a command line.

    Raises:
        ConfigError: There is no such preset; the message lists those there are.
    """
    if name not in preset_names():
        raise ConfigError(f"--preset {name} is not known: use one of {preset_names()}, or flags without a preset.")
    values = json.loads((PRESETS / f"{name}.json").read_text(encoding="utf-8"))
    return [word for flag, value in values.items() for word in _words(flag, value)]


def _words(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    if isinstance(value, dict):
        value = [word for pair in value.items() for word in pair]
    return [f"--{flag}", *(str(word) for word in (value if isinstance(value, list) else [value]))]


def check_shared(args: SharedArguments) -> None:
    """Refuse values that would only fail in the middle of a run, of the groups and flags that the scripts share.

    Raises:
        ConfigError: The message names the flag, its value and what is allowed.
    """
    values = flat(asdict(args))
    check_output(args.output)
    check_not_blank(values)
    check_seed_and_finite(values)
    check_positive(values, POSITIVE)
    check_numbers(
        values,
        names=SHARES,
        allowed=lambda value: 0 <= value <= 1,
        words="a number from 0 to 1",
    )
    check_numbers(
        values,
        names=RATES,
        allowed=lambda value: 0 <= value < 1,
        words="a number from 0 to below 1",
    )
    check_numbers(
        values,
        names=NOT_NEGATIVE,
        allowed=lambda value: value >= 0,
        words="0 or more",
    )
    if not all(0 <= beta < 1 for beta in args.train.opt_betas):
        raise ConfigError(f"--opt_betas {args.train.opt_betas} is not allowed: use two numbers from 0 to below 1.")
    low, high = args.augment.scale
    if not 0 < low <= high <= 1:
        raise ConfigError(f"--scale {low} {high} is not allowed: use two fractions of the area, the smaller first.")
