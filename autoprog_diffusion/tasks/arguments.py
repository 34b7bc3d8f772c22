"""Command lines of the recipes: the flags that all share, those of a task, and the plain settings made of them."""

from __future__ import annotations

from dataclasses import dataclass

from autoprog_diffusion.training.arguments import flat_flags
from autoprog_diffusion.training.recipe_arguments import Arguments

from .class_conditional import ClassSettings
from .dreambooth import SubjectSettings
from .flow_matching import FlowSettings
from .lora import LoraSettings
from .objective import NoiseSettings
from .sdxl import SDXLSettings
from .stable_diffusion import CaptionSettings


@flat_flags
@dataclass(frozen=True)
class ClassConditionalArguments(Arguments):
    """All groups of arguments, and the classes."""

    classes: ClassSettings = ClassSettings()


@flat_flags
@dataclass(frozen=True)
class FlowMatchingArguments(Arguments):
    """All groups of arguments, and flow matching."""

    flow: FlowSettings = FlowSettings()


@flat_flags
@dataclass(frozen=True)
class DreamboothArguments(FlowMatchingArguments):
    """All groups of arguments, subject and class, and LoRA on request."""

    subject: SubjectSettings = SubjectSettings()
    lora: LoraSettings = LoraSettings(rank=0)


@flat_flags
@dataclass(frozen=True)
class LoraArguments(FlowMatchingArguments):
    """All groups of arguments, flow matching for SD3 and Flux, and LoRA."""

    lora: LoraSettings = LoraSettings()


@flat_flags
@dataclass(frozen=True)
class SDXLArguments(Arguments):
    """All groups of arguments, and Stable Diffusion XL's."""

    xl: SDXLSettings = SDXLSettings()


@flat_flags
@dataclass(frozen=True)
class TextToImageArguments(Arguments):
    """All groups of arguments, and captions."""

    captions: CaptionSettings = CaptionSettings()


def hub_options(args: Arguments) -> dict[str, str | None]:
    """Options of `from_pretrained`, and the types of the parts that do not train."""
    model = args.model
    return {
        "revision": model.revision,
        "variant": model.variant,
        "cache_dir": model.cache_dir,
        "text_encoder_dtype": model.text_encoder_dtype,
        "vae_dtype": model.vae_dtype,
    }


def noise_settings(args: Arguments) -> NoiseSettings:
    """Settings of the denoising objective."""
    train = args.train
    return NoiseSettings(
        noise_offset=train.noise_offset,
        input_perturbation=train.input_perturbation,
        timestep_sampling=train.timestep_sampling,
        snr_gamma=train.snr_gamma,
        prediction_type=train.prediction_type,
    )
