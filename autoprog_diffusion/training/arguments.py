"""Command-line arguments of the recipes. Names and meanings are those of Diffusers' `train_text_to_image.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import tyro

from autoprog_diffusion.growth.errors import ConfigError


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
    """Folder of images with a metadata.jsonl or metadata.csv that holds the captions."""
    dataset_name: str | None = None
    """Hub name or folder of a `datasets` data set."""
    dataset_config_name: str | None = None
    """Configuration of that data set."""
    image_column: str = "image"
    """Column that holds the images."""
    caption_column: str = "text"
    """Column that holds the captions."""
    max_train_samples: int | None = None
    """Use only the first so many images."""
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
    """Epochs, where --max_train_steps is not given."""
    max_train_steps: int | None = None
    """Optimizer steps of the whole run."""
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
class GrowthArguments:
    """Progressive growth."""

    growth: Literal["on", "off"] = "on"
    """off is plain full fine-tuning in the same loop."""
    growth_plan: str | None = None
    """Follow the plan in this file: one that was dumped, or the growth.json of an earlier run."""
    num_stages: int = 4
    """Number of stages; the first one (with --direction unfreeze the last) trains everything."""
    order: Literal["interleaved", "suffix", "prefix"] = "suffix"
    """Which blocks train in every stage, with --search none: suffix are those nearest the output."""
    min_trainable: float = 0.25
    """Fraction of the blocks trained in the smallest stage."""
    direction: Literal["unfreeze", "freeze"] | None = None
    """freeze starts with the whole model and freezes block after block, unfreeze ends with it [freeze; unfreeze for
    LoRA, DreamBooth and --search zero_shot]."""
    resolutions: tuple[float, ...] | None = None
    """Resolution of every stage: fractions up to 1, or pixels."""
    boundaries: tuple[float, ...] | None = None
    """First step of every stage but the first, or fractions of the run in (0, 1)."""
    stage_embedding: bool = True
    """Train a stage embedding and fold it away at the end."""
    stage_embedding_init: Literal["zero", "normal", "carry"] = "zero"
    """Its initial value."""
    stage_dropout: float = 0.0
    """Probability of dropping the stage embedding, per sample."""
    search: Literal["zero_shot", "none"] = "none"
    """none follows --order and --min_trainable; zero_shot chooses every stage but the last while training."""
    search_objective: Literal["gain_per_cost", "rank_vote", "random", "fixed"] = "gain_per_cost"
    """How a search weighs scores; rank_vote is the paper's, random and fixed are baselines."""
    search_cost: Literal["flops", "measured"] = "flops"
    """Cost of a candidate: counted, the same in every run, or measured on this machine."""
    search_orders: tuple[Literal["interleaved", "suffix", "prefix"], ...] = ("interleaved", "suffix", "prefix")
    """Orders whose levels a search may choose."""


@dataclass(frozen=True)
class OutputArguments:
    """Output, checkpoints and validation."""

    output_dir: str = "sd-model-finetuned"
    """Folder of the trained pipeline, the pictures and the checkpoints."""
    overwrite_output_dir: bool = False
    """Delete the run that the folder holds."""
    checkpointing_steps: int = 500
    """Optimizer steps between checkpoints."""
    checkpoints_total_limit: int | None = None
    """Keep only so many checkpoints."""
    resume_from_checkpoint: str | None = None
    """A checkpoint folder, or latest for the newest complete one."""
    validation_prompts: tuple[str, ...] | None = None
    """Prompts of the before/after picture [held-out emoji for the default data]."""
    validation_steps: int | None = None
    """Optimizer steps between validation pictures during training."""
    num_inference_steps: int = 25
    """Denoising steps of a picture."""
    guidance_scale: float | None = None
    """Classifier-free guidance of a picture [3.0 for the default model, 7.5 for others]."""
    report_to: str = "none"
    """none, tensorboard, wandb, comet_ml or all."""
    tracker_project_name: str = "autoprog-diffusion"
    """Project name for the tracker."""
    logging_dir: str = "logs"
    """Tracker files, inside the output folder."""


@dataclass(frozen=True)
class Arguments:
    """All groups of arguments of a recipe."""

    model: tyro.conf.OmitArgPrefixes[ModelArguments] = field(default_factory=ModelArguments)
    data: tyro.conf.OmitArgPrefixes[DataArguments] = field(default_factory=DataArguments)
    train: tyro.conf.OmitArgPrefixes[TrainArguments] = field(default_factory=TrainArguments)
    growth: tyro.conf.OmitArgPrefixes[GrowthArguments] = field(default_factory=GrowthArguments)
    output: tyro.conf.OmitArgPrefixes[OutputArguments] = field(default_factory=OutputArguments)


def check_arguments(args: Arguments) -> None:
    """Refuse values that would only fail in the middle of a run.

    Raises:
        ConfigError: The message names the flag, its value and what is allowed.
    """
    positive = ("train_batch_size", "num_train_epochs", "max_train_steps", "gradient_accumulation_steps")
    positive += ("learning_rate", "checkpointing_steps", "checkpoints_total_limit", "validation_steps")
    positive += ("num_inference_steps", "snr_gamma", "resolution")
    for group in (args.data, args.train, args.output):
        for name in positive:
            value = getattr(group, name, None)
            if value is not None and not value > 0:
                raise ConfigError(f"--{name} {value} is not allowed: use a number above 0.")
    trackers = ("none", "all", "tensorboard", "wandb", "comet_ml", "mlflow", "clearml", "dvclive", "swanlab")
    schedules = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
    flags = {"report_to": (args.output.report_to, trackers), "lr_scheduler": (args.train.lr_scheduler, schedules)}
    for name, (value, allowed) in flags.items():
        if value not in allowed:
            raise ConfigError(f"--{name} {value} is not allowed: use one of {allowed}.")
