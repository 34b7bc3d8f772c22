"""Command-line arguments of the recipes, named as in Diffusers' scripts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from autoprog_diffusion.evaluation.split import MOST_SHARE
from autoprog_diffusion.growth.power_average import DEFAULT_WIDTH

from .arguments import (
    Derived,
    GrowthArguments,
    OutputArguments,
    check_choice,
    check_numbers,
    check_output,
    check_positive,
    flat,
    flat_flags,
    growth_config,
)
from .flag_checks import check_local, check_not_blank, check_seed_and_finite


SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
POSITIVE = (
    "train_batch_size", "num_train_epochs", "max_train_steps", "gradient_accumulation_steps", "learning_rate",
    "snr_gamma", "resolution", "num_inference_steps", "max_grad_norm", "adam_epsilon", "evaluation_steps",
    "stop_patience", "bucket_step",
)  # fmt: skip
NOT_NEGATIVE = ("lr_warmup_steps", "adam_weight_decay", "dataloader_num_workers", "noise_offset", "input_perturbation")
SHARES = ("held_out_share", "evaluation_share")
RATES = ("adam_beta1", "adam_beta2", "ema_decay")


@dataclass(frozen=True)
class ModelArguments:
    """Model; without a name the small emoji pipeline that comes with the recipes."""

    pretrained_model_name_or_path: str | None = None
    """Folder or Hub name of a Diffusers pipeline."""
    revision: str | None = None
    """Revision of the Hub model."""
    variant: str | None = None
    """Variant of the weight files, for example fp16."""
    text_encoder_dtype: Literal["float32", "stored"] = "float32"
    """Type of the text encoders: as they are stored, or float32. They are saved in it."""
    vae_dtype: Literal["float32", "stored"] = "float32"
    """Type of the VAE, as of the text encoders; a float16 VAE that overflows is refused."""
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
    buckets: bool = False
    """Train images at their own aspect ratio, in batches of one size, instead of squares."""
    bucket_step: int | None = None
    """What sides of buckets are multiples of, in pixels [a sixteenth of the resolution, where the model allows it]."""
    max_aspect: float = 2.0
    """Longer side over the shorter one of a bucket, at most; longer images are cropped to it."""
    bucket_resolutions: tuple[int, ...] | None = None
    """Train every image at each of these resolutions that it has pixels for; the largest is --resolution."""
    merge_buckets: bool = False
    """Crop the images of buckets that fill no batch to the nearest bucket that does."""
    incomplete_batches: Literal["drop", "fill"] = "drop"
    """Images of a bucket that fill no batch: leave them out of the epoch, or take others of the bucket once more."""
    shuffle_tags: int = 0
    """Draw one of so many orders of a caption's tags, the words between commas, in every epoch [none]."""
    keep_tags: int = 0
    """Tags at the beginning that --shuffle_tags leaves in their places."""
    center_crop: bool = False
    """Crop the centre of non-square images instead of a random place; cached latents always crop the centre."""
    random_flip: bool = False
    """Mirror images at random."""
    image_interpolation_mode: Literal["nearest", "bilinear", "bicubic", "lanczos", "box"] = "lanczos"
    """Filter that resizes images to the resolution."""
    cache_latents: bool = True
    """Encode every image once per stage resolution, before training in it."""
    cache_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of cached latents and text embeddings; bfloat16 rounds them, and takes half the space."""
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
    probe_batch: bool = False
    """Before training, measure the gradient noise on a few batches, and print which batch and steps it speaks for."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    scale_lr: bool = False
    """Multiply the learning rate by processes, accumulation and batch size."""
    lr_scheduler: str = "constant_with_warmup"
    """linear, cosine, cosine_with_restarts, polynomial, constant or constant_with_warmup."""
    lr_warmup_steps: int = 500
    """Optimizer steps of warm-up; the default is at most a tenth of the run."""
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
    optimizer: Literal["adamw", "adamw8bit", "adamw4bit", "adamw_fp8", "adamw8bit_bnb", "adafactor"] = "adamw"
    """adamw keeps 8 bytes of state a parameter, 8bit and fp8 2, 4bit 1; from torchao, or bitsandbytes (bnb)."""
    fused_optimizer: Literal["auto", "on", "off"] = "auto"
    """Whether torch's AdamW moves a parameter in one pass over its memory; auto does so on the CPU."""
    use_8bit_adam: bool = False
    """The same as --optimizer adamw8bit_bnb."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in CPU memory; some of it is on the device at a time, while a step needs it."""
    trained_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the weights which train are stored in; bfloat16 is rounded stochastically."""
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
    compile: bool = False
    """Compile the blocks of the model, a graph for every kind of block; it takes a minute or more before it pays."""
    step_in_backward: bool = False
    """Step every block inside the backward pass and free its gradient, which is clipped by block; one process only."""
    average: Literal["auto", "on", "off"] = "auto"
    """Average the weights with a width that grows with the run, and evaluate, draw and save the average; auto does so
    with --lr_scheduler constant_with_warmup and without --use_ema."""
    average_widths: tuple[float, ...] = (DEFAULT_WIDTH,)
    """Relative widths of the averages, above 0 and up to 0.2886; the held-out loss chooses one at the end."""
    use_ema: bool = False
    """Average the weights with a fixed decay, as Diffusers does, and save the average."""
    ema_decay: float = 0.9999
    """Decay of the average of --use_ema."""
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
class HeldOutArguments:
    """Held-out loss, best weights, and stopping."""

    held_out: bool = True
    """Evaluate images that do not train, and save the best weights; --no-held_out trains on all images instead."""
    validation_data_dir: str | None = None
    """Images to evaluate, as --train_data_dir takes them [a share of the training data, if it is large enough]."""
    held_out_share: float = 0.05
    """Share of the training images that is held out, at most 128 images."""
    evaluation_share: float = 0.02
    """Share of the run's computation that evaluations may take."""
    evaluation_steps: int | None = None
    """Optimizer steps between evaluations [what --evaluation_share allows]."""
    stop_patience: int | None = None
    """Stop when the held-out loss has not fallen by more than its noise for so many evaluations [never]."""
    export: Literal["best", "last"] = "best"
    """Weights that are saved at the end: those with the lowest held-out loss, or the last ones."""


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
    evaluation: HeldOutArguments = HeldOutArguments()
    given: Derived[tuple[str, ...]] = ()


def check_arguments(args: Arguments) -> None:
    """Refuse values that would only fail in the middle of a run.

    Raises:
        ConfigError: The message names the flag, its value and what is allowed.
    """
    values = flat(asdict(args))
    check_output(args.output)
    check_not_blank(values)
    check_local(values)
    check_seed_and_finite(values)
    check_positive(values, POSITIVE)
    check_numbers(values, NOT_NEGATIVE, lambda value: value >= 0, "0 or more")
    check_numbers(values, RATES, lambda value: 0 <= value < 1, "a number from 0 to below 1")
    check_numbers(values, SHARES, lambda value: 0 < value <= MOST_SHARE, f"a number above 0, at most {MOST_SHARE}")
    check_choice("lr_scheduler", args.train.lr_scheduler, SCHEDULES)
    growth_config(args.growth, multiple=1, ema_decay=None, seed=args.train.seed)
