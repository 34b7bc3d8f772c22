"""Command-line arguments: groups that all scripts share, and those of the recipes, named as in Diffusers' scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, TypeVar

import tyro

from autoprog_diffusion.growth import GrowthConfig, GrowthPlan
from autoprog_diffusion.growth.errors import ConfigError

from .flag_checks import TRACKERS, check_not_blank, check_seed_and_finite, check_tracker


SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
POSITIVE = (
    "train_batch_size", "num_train_epochs", "max_train_steps", "gradient_accumulation_steps", "learning_rate",
    "snr_gamma", "resolution", "num_inference_steps", "max_grad_norm", "adam_epsilon",
)  # fmt: skip
NOT_NEGATIVE = ("lr_warmup_steps", "adam_weight_decay", "dataloader_num_workers", "noise_offset", "input_perturbation")
RATES = ("adam_beta1", "adam_beta2", "ema_decay")
Value = TypeVar("Value")
# Of a class of groups: no flag is prefixed with the name of its group. A subclass needs it again.
flat_flags = tyro.conf.configure(tyro.conf.OmitArgPrefixes)
# A field that the run sets itself: no flag.
Derived = Annotated[Value, tyro.conf.Fixed, tyro.conf.Suppress]


@dataclass(frozen=True)
class GrowthArguments(GrowthConfig):
    """Progressive training."""

    growth: Literal["on", "off", "autoprog_zero"] = "on"
    """off is plain full training in the same loop; autoprog_zero is the paper as published, where no flag differs."""
    growth_plan: str | None = None
    """Follow the plan in this file: one that was dumped, or the growth.json of an earlier run."""
    stage_embedding: bool = True
    """Train a stage embedding and fold it away at the end."""
    ema_decay: Derived[float | None] = None
    resolution_multiple: Derived[int] = 1
    rewarm_steps: Derived[int] = 0
    search_candidates: Derived[tuple[tuple[int, ...], ...] | None] = None
    search_seed: Derived[int] = 0

    def __post_init__(self) -> None:
        """Leave the checks to `growth_config`: an error while tyro parses would come in a frame of several lines."""


def autoprog_zero(**overrides: Any) -> GrowthArguments:
    """The flags' defaults under `--growth autoprog_zero`; `overrides` are fields that a script cannot have."""
    preset = GrowthConfig.autoprog_zero(resolution_multiple=1, **overrides)
    return GrowthArguments(**vars(preset), growth="autoprog_zero")


def growth_config(
    growth: GrowthArguments, *, multiple: int, ema_decay: float | None, seed: int
) -> tuple[GrowthConfig, GrowthPlan | None]:
    """Growth settings of the flags, and the plan of a file if they name one.

    `--growth off` is one stage that trains everything, without a stage embedding: plain full training.

    Args:
        growth: The flags.
        multiple: What every image side must be a multiple of.
        ema_decay: Decay of the model's average, or None without one.
        seed: The run's seed.

    Raises:
        ConfigError: A value is not allowed.
        PlanError: The plan file cannot be used.
    """
    if growth.growth == "off":
        return GrowthConfig(num_stages=1, min_trainable=1.0, stage_embedding=False), None
    settings = {item.name: getattr(growth, item.name) for item in fields(GrowthConfig)}
    settings |= {"resolution_multiple": multiple, "ema_decay": ema_decay, "search_seed": seed}
    bounds = growth.boundaries
    # tyro reads "100" as 100.0.
    if bounds and all(bound >= 1 and bound == int(bound) for bound in bounds):
        settings["boundaries"] = tuple(map(int, bounds))
    if not growth.growth_plan:
        return GrowthConfig(**settings), None
    plan = GrowthPlan.load(growth.growth_plan)
    settings |= {"num_stages": len(plan.stages), "search": "none", "resolutions": None, "boundaries": None}
    return GrowthConfig(**settings), plan


@dataclass(frozen=True)
class OutputArguments:
    """Output, checkpoints and validation."""

    output_dir: str = "output"
    """Folder of the trained model, the report and the checkpoints."""
    overwrite_output_dir: bool = False
    """Delete the run that the folder holds."""
    checkpointing_steps: int = 500
    """Optimizer steps between checkpoints."""
    checkpoints_total_limit: int | None = None
    """Keep only so many checkpoints."""
    resume_from_checkpoint: str | None = None
    """A checkpoint folder, or latest for the newest complete one."""
    validation_steps: int | None = None
    """Optimizer steps between validations, or validation pictures, during training [at the end only]."""
    log_interval: int = 1
    """Optimizer steps between lines of the tracker."""
    report_to: str = "none"
    """none, tensorboard, wandb, comet_ml or all."""
    tracker_project_name: str = "autoprog-diffusion"
    """Project name for the tracker."""
    logging_dir: str = "logs"
    """Tracker files, inside the output folder."""


def take_flag(argv: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Take `--name value` or `--name=value` from a command line; hyphens are underscores.

    Returns:
        The flag's last value, or None without the flag; and the other words.
    """
    found = None
    rest = []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag.replace("-", "_") != f"__{name}":
            rest.append(word)
        else:
            found = value if equals else next(words, "")
    return found, rest


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flag -> value over all groups of a script's settings, where a group is a dict."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        group = value if isinstance(value, dict) else {name: value}
        for flag, setting in group.items():
            # Groups share no flag; what `GrowthArguments` derives has the name of a flag, and comes after it.
            values.setdefault(flag, setting)
    return values


def check_output(output: OutputArguments) -> None:
    """Refuse output flags that would only fail in the middle of a run.

    Raises:
        ConfigError: The message names the flag, its value and what is allowed.
    """
    names = ("checkpointing_steps", "checkpoints_total_limit", "validation_steps", "log_interval")
    check_positive(vars(output), names)
    check_choice("report_to", output.report_to, TRACKERS)
    check_tracker(output.report_to)


def check_positive(values: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse values of the named flags that are not above 0; as `check_numbers`."""
    check_numbers(values, names, lambda value: value > 0, "a number above 0")


def check_numbers(
    values: Mapping[str, Any], names: Sequence[str], allowed: Callable[[float], bool], words: str
) -> None:
    """Refuse values of the named flags that are not `allowed`; None and absent flags pass.

    Args:
        values: Flag -> value.
        names: Flags to check.
        allowed: Whether a value is allowed.
        words: Which values are, for the message.

    Raises:
        ConfigError: The message names the flag, its value and what is allowed.
    """
    for name in names:
        value = values.get(name)
        if value is not None and not allowed(value):
            raise ConfigError(f"--{name} {value} is not allowed: use {words}.")


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a value that is not one of `allowed`.

    Raises:
        ConfigError: The message names the flag, its value and what is allowed.
    """
    if value not in allowed:
        raise ConfigError(f"--{name} {value} is not allowed: use one of {tuple(allowed)}.")


@dataclass(frozen=True)
class ModelArguments:
    """Model; without a name the small emoji pipeline that comes with the recipes."""

    pretrained_model_name_or_path: str | None = None
    """Folder or Hub name of a Diffusers pipeline."""
    revision: str | None = None
    """Revision of the Hub model."""
    variant: str | None = None
    """Variant of the weight files, for example fp16."""
    cache_dir: str | None = None
    """Where downloaded models and data are kept."""


@dataclass(frozen=True)
class DataArguments:
    """Data; without a name OpenMoji emoji with their captions, from a pip package."""

    train_data_dir: str | None = None
    """Folder of images with captions in a metadata.jsonl, a metadata.csv or text files, or of parquet files."""
    dataset_name: str | None = None
    """Hub name or folder of a `datasets` data set."""
    dataset_config_name: str | None = None
    """Configuration of that data set."""
    image_column: str = "image"
    """Column that holds the images."""
    caption_column: str = "text"
    """Column that holds the captions."""
    max_train_samples: int | None = None
    """Use only so many images, a random choice by --seed."""
    corrupt: Literal["refuse", "skip"] = "refuse"
    """What to do with images that cannot be decoded: stop and name them, or leave them out and name them."""
    resolution: int | None = None
    """Side of the training images in pixels [the pipeline's own size]."""
    center_crop: bool = False
    """Crop the centre of non-square images instead of a random place; cached latents always crop the centre."""
    random_flip: bool = False
    """Mirror images at random."""
    image_interpolation_mode: Literal["nearest", "bilinear", "bicubic", "lanczos", "box"] = "lanczos"
    """Filter that resizes images to the resolution."""
    cache_latents: bool = True
    """Encode every image once per stage resolution, before training in it."""
    dataloader_num_workers: int = 0
    """Processes that decode images, for --no-cache_latents."""


@dataclass(frozen=True)
class TrainArguments:
    """Optimisation."""

    train_batch_size: int = 16
    """Images per process and forward pass."""
    num_train_epochs: int = 100
    """Epochs; they win over a default of --max_train_steps."""
    max_train_steps: int | None = None
    """Optimizer steps of the whole run; beside --num_train_epochs on the command line they win."""
    gradient_accumulation_steps: int = 1
    """Forward passes per optimizer step."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    scale_lr: bool = False
    """Multiply the learning rate by processes, accumulation and batch size."""
    lr_scheduler: str = "constant"
    """linear, cosine, cosine_with_restarts, polynomial, constant or constant_with_warmup."""
    lr_warmup_steps: int = 500
    """Optimizer steps of warm-up."""
    snr_gamma: float | None = None
    """Gamma of the min-SNR loss weighting (arXiv 2303.09556); 5.0 is recommended."""
    timestep_sampling: Literal["independent", "stratified"] = "independent"
    """stratified spreads the timesteps of a batch evenly, so that its loss varies less; each alone stays as likely."""
    noise_offset: float = 0.0
    """Scale of a per-channel offset of the noise."""
    input_perturbation: float = 0.0
    """Scale of an extra perturbation of the input noise; 0.1 is recommended."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    """What the model predicts [as the noise scheduler says]."""
    use_8bit_adam: bool = False
    """AdamW with 8-bit state, from bitsandbytes."""
    adam_beta1: float = 0.9
    """Beta1 of Adam."""
    adam_beta2: float = 0.999
    """Beta2 of Adam."""
    adam_weight_decay: float = 1e-2
    """Decoupled weight decay."""
    adam_epsilon: float = 1e-8
    """Epsilon of Adam."""
    max_grad_norm: float = 1.0
    """Clip the gradient to this norm."""
    use_ema: bool = False
    """Average the weights, and save the average."""
    ema_decay: float = 0.9999
    """Decay of the average."""
    offload_ema: bool = False
    """Keep the average in CPU memory."""
    foreach_ema: bool = False
    """Average with fused operations."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Precision of the forward pass [as `accelerate config` says]."""
    allow_tf32: bool = False
    """Use TF32 on Ampere and later GPUs."""
    seed: int = 0
    """Seed of everything random."""


@dataclass(frozen=True)
class PictureArguments(OutputArguments):
    """Output, checkpoints and pictures."""

    output_dir: str = "sd-model-finetuned"
    """Folder of the trained pipeline, the pictures and the checkpoints."""
    validation_prompts: tuple[str, ...] | None = None
    """Prompts of the before/after picture [held-out emoji for the default data]."""
    num_inference_steps: int = 25
    """Denoising steps of a picture."""
    guidance_scale: float | None = None
    """Classifier-free guidance of a picture [3.0 for the default model, 7.5 for others]."""


@flat_flags
@dataclass(frozen=True)
class Arguments:
    """All groups of arguments of a recipe."""

    model: ModelArguments = ModelArguments()
    data: DataArguments = DataArguments()
    train: TrainArguments = TrainArguments()
    growth: GrowthArguments = GrowthArguments()
    output: PictureArguments = PictureArguments()
    given: Derived[tuple[str, ...]] = ()


def check_arguments(args: Arguments) -> None:
    """Refuse values that would only fail in the middle of a run.

    Raises:
        ConfigError: The message names the flag, its value and what is allowed.
    """
    values = flat(asdict(args))
    check_output(args.output)
    check_not_blank(values)
    check_seed_and_finite(values)
    check_positive(values, POSITIVE)
    check_numbers(values, NOT_NEGATIVE, lambda value: value >= 0, "0 or more")
    check_numbers(values, RATES, lambda value: 0 <= value < 1, "a number from 0 to below 1")
    check_choice("lr_scheduler", args.train.lr_scheduler, SCHEDULES)
    growth_config(args.growth, multiple=1, ema_decay=None, seed=args.train.seed)
