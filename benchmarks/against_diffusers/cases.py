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
    """

    script: str
    theirs: tuple[str, ...]
    recipe: str
    ours: tuple[str, ...]
    save: Callable[[Path], Any]


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


COMMON = ("--resolution", "64", "--train_batch_size", "16", "--learning_rate", RATE)
MODEL = ("--pretrained_model_name_or_path", "{model}")
# What is drawn and evaluated beside training is as little as the scripts of Diffusers do.
QUIET = ("--num_inference_steps", "1", "--validation_prompts", "cat face", "--lr_warmup_steps", "5")
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
