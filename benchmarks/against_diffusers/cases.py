"""What is compared: two cases, Diffusers' scripts for them, and the recipes with one thing switched off at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import ASSETS


RATE = "5e-4"  # that the bundled models take: of both sides


@dataclass(frozen=True)
class Case:
    """One model.

    Attributes:
        script: Diffusers' script, below `examples/`.
        theirs: Its flags; `{model}` and `{images}` are folders.
        recipe: Ours, in `recipes/`.
        ours: Its flags.
        save: Writes the pipeline that both begin with into a folder.
        trained: Whether its weights mean something, so that there is a loss to compare.
    """

    script: str
    theirs: tuple[str, ...]
    recipe: str
    ours: tuple[str, ...]
    save: Callable[[Path], Any]
    trained: bool = True


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        words: What it is, for the table.
        flags: Of the recipe; of Diffusers' script where it is theirs.
        share: Of the steps.
        theirs: Whether it is Diffusers' script.
    """

    words: str
    flags: tuple[str, ...] = ()
    share: float = 1.0
    theirs: bool = False


def save_sd(folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline.from_pretrained(ASSETS / "tiny_sd").save_pretrained(folder)


def save_sd3(folder: Path) -> None:
    from autoprog_diffusion.tasks.tiny_pipelines import load_tiny_flow

    load_tiny_flow(ASSETS).save_pretrained(folder)


def save_sd15(folder: Path) -> None:
    """Stable Diffusion 1.5 with random weights; its text is as long as the bundled tokenizer makes it."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "tiny_sd" / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        num_hidden_layers=12,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        scheduler=DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


COMMON = ("--resolution", "64", "--train_batch_size", "16", "--learning_rate", RATE)
MODEL = ("--pretrained_model_name_or_path", "{model}")
# What is drawn and evaluated beside training is as little as the scripts of Diffusers do.
# Of a model of published size on a GPU: a few images, since its latents take long, and no loss.
FEW = ("--max_train_samples", "256", "--mixed_precision", "bf16", "--learning_rate", "1e-5")
LARGE = ("--resolution", "512", "--train_batch_size", "4", *FEW)
SMALL = ("--resolution", "64", "--train_batch_size", "2", *FEW)
QUIET = ("--num_inference_steps", "1", "--validation_prompts", "cat face", "--lr_warmup_steps", "5")
SD_DATA = (*MODEL, "--train_data_dir", "{images}")


def size_only(flags: tuple[str, ...], save: Callable[[Path], Any]) -> Case:
    """Stable Diffusion by the same scripts, for times alone."""
    ours = (*SD_DATA, *flags, *QUIET, "--no-held_out")
    return Case(
        "text_to_image/train_text_to_image.py", (*SD_DATA, *flags), "finetune_sd.py", ours, save, trained=False
    )


CASES = {
    "sd": Case(
        "text_to_image/train_text_to_image.py",
        (*MODEL, "--train_data_dir", "{images}", *COMMON),
        "finetune_sd.py",
        (*MODEL, "--train_data_dir", "{images}", "--validation_data_dir", "{held}", *COMMON, *QUIET),
        save_sd,
    ),
    "sd3": Case(
        "dreambooth/train_dreambooth_sd3.py",
        (
            *MODEL, "--dataset_name", "{images}", "--caption_column", "text", "--instance_prompt", "emoji", *COMMON,
            "--max_sequence_length", "16", "--weighting_scheme", "logit_normal", "--precondition_outputs", "0",
        ),
        "finetune_flow.py",
        (
            *MODEL, "--train_data_dir", "{images}", "--validation_data_dir", "{held}", *COMMON, *QUIET,
            "--max_sequence_length", "16", "--weighting_scheme", "logit_normal",
        ),
        save_sd3,
    ),
    "sd15": size_only(LARGE, save_sd15),
    "sd15_tiny": size_only(SMALL, save_sd),
}  # fmt: skip
COSINE = ("--lr_scheduler", "cosine")
METHODS = {
    "theirs": Method("Diffusers' script, cosine", (*COSINE, "--lr_warmup_steps", "5"), theirs=True),
    "theirs_constant": Method(
        "Diffusers' script, constant rate", ("--lr_scheduler", "constant_with_warmup", "--lr_warmup_steps", "5"),
        theirs=True,
    ),
    "ours": Method("recipe"),
    "no_cache": Method("recipe without cached latents", ("--no-cache_latents",)),
    "no_growth": Method("recipe without growth", ("--growth", "off")),
    "no_average": Method("recipe without average, cosine", ("--average", "off", *COSINE)),
    "no_fused": Method("recipe without fused optimizer", ("--fused_optimizer", "off")),
    "no_evaluation": Method("recipe without evaluations", ("--no-held_out",)),
    "compiled": Method("recipe, compiled", ("--compile",)),
    "ours_75": Method("recipe, 75 % of the steps", share=0.75),
    "ours_50": Method("recipe, half of the steps", share=0.5),
}  # fmt: skip
