"""Command-line arguments of `vit/pretrain.py`, with timm's names, and the presets: files of flags."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from autoprog_diffusion.growth.errors import ConfigError

from .augment_settings import AugmentSettings


PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "cpu"


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
    """Epochs, where --max_train_steps is not given."""
    max_train_steps: int | None = None
    """Optimizer steps of the whole run."""
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
    sched: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up, over the whole run: growth does not start it again."""
    warmup_epochs: float = 5.0
    """Epochs of linear warm-up, where --warmup_steps is not given."""
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
class GrowthArguments:
    """Progressive growth."""

    growth: Literal["on", "off"] = "on"
    """off is ordinary training in the same loop."""
    num_stages: int = 4
    """Number of stages; the last one is the whole model at full resolution."""
    min_depth: float = 0.5
    """Fraction of the blocks in the first stage."""
    min_resolution: float = 0.5
    """Side of the images in the first stage, as a fraction of --img_size; it rises linearly to it."""
    resolutions: tuple[int, ...] | None = None
    """Side of the images in every stage, in pixels, instead of --min_resolution."""
    boundaries: tuple[float, ...] | None = None
    """First step of every stage but the first, as fractions of the run [equal stages]."""
    search: Literal["one_shot", "zero_shot", "random", "fixed"] = "one_shot"
    """Who chooses depth and resolution of a stage: a supernet, scores at initialisation, chance, or nobody."""
    search_steps: float = 0.1
    """Supernet training at the start of a stage: a fraction of the stage below 1, or optimizer steps."""
    evaluations: int = 5
    """How often the candidates are evaluated during a search."""
    search_samples: int = 512
    """Training images that are set aside to evaluate candidates on."""
    search_cost: Literal["flops", "measured"] = "flops"
    """Time of a candidate: counted, the same in every run, or measured on this machine."""
    operator: Literal["momentum", "interpolation", "stacking", "identity", "random"] = "momentum"
    """How new blocks get their weights; momentum is the interpolation of the average."""
    optimizer_state: Literal["copy", "average", "fresh"] = "copy"
    """State of the optimizer for new blocks."""


@dataclass(frozen=True)
class OutputArguments:
    """Output, checkpoints and validation."""

    output_dir: str = "vit-pretrained"
    """Folder of the trained model, the report and the checkpoints."""
    overwrite_output_dir: bool = False
    """Delete the run that the folder holds."""
    checkpointing_steps: int = 500
    """Optimizer steps between checkpoints."""
    checkpoints_total_limit: int | None = 2
    """Keep only so many checkpoints."""
    resume_from_checkpoint: str | None = None
    """A checkpoint folder, or latest for the newest complete one."""
    validation_steps: int | None = None
    """Optimizer steps between validations [at the end only]."""
    log_interval: int = 1
    """Optimizer steps between lines of the tracker."""
    report_to: str = "none"
    """none, tensorboard, wandb, comet_ml or all."""
    tracker_project_name: str = "autoprog-vit"
    """Project name for the tracker."""
    logging_dir: str = "logs"
    """Tracker files, inside the output folder."""


@dataclass(frozen=True)
class Arguments:
    """All groups of arguments."""

    model: tyro.conf.OmitArgPrefixes[ModelArguments] = field(default_factory=ModelArguments)
    data: tyro.conf.OmitArgPrefixes[DataArguments] = field(default_factory=DataArguments)
    train: tyro.conf.OmitArgPrefixes[TrainArguments] = field(default_factory=TrainArguments)
    augment: tyro.conf.OmitArgPrefixes[AugmentSettings] = field(default_factory=AugmentSettings)
    growth: tyro.conf.OmitArgPrefixes[GrowthArguments] = field(default_factory=GrowthArguments)
    output: tyro.conf.OmitArgPrefixes[OutputArguments] = field(default_factory=OutputArguments)


def parse(argv: Sequence[str], description: str | None = None) -> Arguments:
    """The arguments of a command line: the preset's flags first, so that any flag after them wins.

    Without `--preset` and `--model` the preset is `cpu`.

    Raises:
        ConfigError: There is no such preset, or a value is not allowed.
    """
    preset, rest = _split_preset(argv)
    named = any(flag.split("=")[0] == "--model" for flag in rest)
    if preset is None and not named:
        preset = DEFAULT_PRESET
    words = preset_words(preset) if preset else []
    args = tyro.cli(Arguments, args=[*words, *rest], description=description)
    check_arguments(args)
    return args


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


def _split_preset(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    words, preset, rest = iter(argv), None, []
    for word in words:
        if word == "--preset":
            preset = next(words, "")
        elif word.startswith("--preset="):
            preset = word.split("=", 1)[1]
        else:
            rest.append(word)
    return preset, rest


def check_arguments(args: Arguments) -> None:
    """Refuse values that would only fail in the middle of a run.

    Raises:
        ConfigError: The message names the flag, its value and what is allowed.
    """
    groups = (args.model, args.data, args.train, args.augment, args.growth, args.output)
    values = {name: value for group in groups for name, value in vars(group).items()}
    positive = ("img_size", "batch_size", "epochs", "max_train_steps", "grad_accum_steps", "lr", "clip_grad")
    positive += ("checkpointing_steps", "checkpoints_total_limit", "validation_steps", "log_interval")
    positive += ("search_samples", "search_steps", "evaluations", "max_train_samples", "num_stages")
    for name in positive:
        if values[name] is not None and not values[name] > 0:
            raise ConfigError(f"--{name} {values[name]} is not allowed: use a number above 0.")
    shares = ("hflip", "reprob", "mixup_prob", "mixup_switch_prob", "aa_scale", "drop_path_scale", "reprob_scale")
    for name in (*shares, "val_fraction", "smoothing", "drop_path", "model_ema_decay"):
        if not 0 <= values[name] <= 1 or (values[name] == 1 and name not in shares):
            allowed = "from 0 to 1" if name in shares else "from 0 to below 1"
            raise ConfigError(f"--{name} {values[name]} is not allowed: use a number {allowed}.")
    for name in ("mixup", "cutmix", "weight_decay", "warmup_lr", "min_lr", "warmup_epochs", "workers"):
        if not values[name] >= 0:
            raise ConfigError(f"--{name} {values[name]} is not allowed: use 0 or more.")
    low, high = args.augment.scale
    if not 0 < low <= high <= 1:
        raise ConfigError(f"--scale {low} {high} is not allowed: use two fractions of the area, the smaller first.")
    trackers = ("none", "all", "tensorboard", "wandb", "comet_ml", "mlflow", "clearml", "dvclive", "swanlab")
    if args.output.report_to not in trackers:
        raise ConfigError(f"--report_to {args.output.report_to} is not allowed: use one of {trackers}.")
