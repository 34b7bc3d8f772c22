"""The parts of a pipeline: what changes the training target or the conditioning is known, or refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from autoprog_diffusion.growth.errors import ConfigError, GrowthError


RECIPES = {None: "finetune_sd.py", "text_time": "finetune_sdxl.py"}
# Inputs of a UNet beside latents, timestep and text: setting of its configuration -> what it stands for.
EXTRA_INPUTS = {
    "class_embed_type": "a class or noise level as input",
    "num_class_embeds": "a class as input",
    "time_cond_proj_dim": "a guidance embedding, as models distilled to a few steps have (LCM)",
}
# Ways of a UNet to take its text that need no other input.
TEXT_PROJECTIONS = (None, "text_proj")
# Blocks of a UNet that undo the halving of an odd number of latents.
ODD_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")


def check_class(name: str, part: str, model: Any, kinds: tuple[type, ...]) -> None:
    """Refuse a part of another class.

    Raises:
        GrowthError: The message names the class and those allowed.
    """
    if not isinstance(model, kinds):
        allowed = " or ".join(kind.__name__ for kind in kinds)
        raise GrowthError(f"the {part} of {name} is a {type(model).__name__}: only {allowed} is trained with here.")


def check_unet(name: str, pipeline: Any, addition: str | None) -> None:
    """Refuse a UNet that is conditioned on something else than the pipeline's class says.

    Diffusers loads some pipelines as another class, with a warning: SDXL as Stable Diffusion, for example.

    Raises:
        GrowthError: The message names the recipe that fits, where there is one.
    """
    check_class(
        name,
        part="UNet",
        model=pipeline.unet,
        kinds=(UNet2DConditionModel,),
    )
    config = pipeline.unet.config
    if config.addition_embed_type != addition:
        recipe = RECIPES.get(config.addition_embed_type)
        hint = f": use recipes/{recipe}." if recipe else ", which no recipe trains."
        raise GrowthError(
            f"the UNet of {name} has addition_embed_type={config.addition_embed_type!r}, here {addition!r} is needed"
            f"{hint}"
        )
    for setting, words in EXTRA_INPUTS.items():
        value = config.get(setting)
        if value is not None:
            raise GrowthError(
                f"the UNet of {name} has {setting}={value!r}, {words}, which no recipe trains: only None is allowed. "
                "Choose the model that it was made from."
            )
    kind = config.get("encoder_hid_dim_type")
    if kind not in TEXT_PROJECTIONS:
        raise GrowthError(
            f"the UNet of {name} has encoder_hid_dim_type={kind!r}, an image as input, which no recipe trains: "
            f"allowed are {list(TEXT_PROJECTIONS)}."
        )
    check_channels(
        name,
        words="UNet",
        config=config,
        vae=pipeline.vae,
        outputs=(1,),
    )


def check_channels(name: str, words: str, config: Any, vae: Any, outputs: tuple[int, ...]) -> None:
    """Refuse a denoiser whose input or output is not one latent image.

    Args:
        name: Of the pipeline.
        words: Of the denoiser.
        config: Of the denoiser.
        vae: Of the pipeline.
        outputs: How many latent images its output may hold: 2 with a learned variance.

    Raises:
        GrowthError: The message names both numbers.
    """
    latent = vae.config.latent_channels
    if config.in_channels != latent:
        raise GrowthError(
            f"the {words} of {name} takes {config.in_channels} channels but its VAE gives {latent}: models for "
            "inpainting, depth and upscaling are not trained here."
        )
    found = config.get("out_channels") or config.in_channels
    allowed = [latent * count for count in outputs]
    if found not in allowed:
        raise GrowthError(
            f"the {words} of {name} gives {found} channels, and only {allowed} are allowed with a VAE of {latent}: "
            "a learned variance is trained for DiT and PixArt alone."
        )


def check_vae(name: str, vae: Any, follows: Iterable[str] = ()) -> None:
    """Refuse a VAE that is none, or whose latents are shifted in a way that the pipeline's own call ignores.

    Args:
        name: Of the pipeline.
        vae: Its VAE.
        follows: Settings beside `scaling_factor` that the pipeline's call follows.

    Raises:
        GrowthError: The message names the class, or the setting and its value.
    """
    check_class(
        name,
        part="VAE",
        model=vae,
        kinds=(AutoencoderKL,),
    )
    _check_scale(name, vae.config.scaling_factor)
    for setting in ("shift_factor", "latents_mean", "latents_std"):
        value = vae.config.get(setting)
        if setting not in follows and value not in (None, 0, 0.0):
            raise GrowthError(
                f"the VAE of {name} has {setting}={value!r}, which its pipeline does not follow when it decodes: "
                "training would teach other latents than it draws. Only None is allowed: remove it from "
                "vae/config.json, or choose another model."
            )
    if "shift_factor" in follows and vae.config.get("shift_factor") is None:
        raise GrowthError(
            f"the VAE of {name} has no shift_factor, and its pipeline cannot decode without: put a number into "
            "vae/config.json; 0.0 if the latents are not shifted."
        )
    _check_mean(name, vae.config)


def check_statistics(name: str, vae: Any) -> None:
    """Refuse a VAE of videos, or one without chance, whose scales are none.

    Raises:
        GrowthError: The message names the setting and its value.
    """
    _check_scale(name, vae.config.get("scaling_factor", 1.0))
    _check_mean(name, vae.config)


def _check_scale(name: str, scale: Any) -> None:
    if not isinstance(scale, int | float) or scale <= 0:
        raise GrowthError(f"the VAE of {name} has scaling_factor={scale!r}: only a number above 0 is allowed.")


def _check_mean(name: str, config: Any) -> None:
    channels = config.get("latent_channels") or config.get("z_dim")
    mean = config.get("latents_mean")
    std = config.get("latents_std")
    if (mean is None) != (std is None):
        raise GrowthError(
            f"the VAE of {name} has latents_mean={mean!r} and latents_std={std!r}: both or none are needed, since "
            "the pipeline ignores one alone. Complete vae/config.json."
        )
    for setting, value in (("latents_mean", mean), ("latents_std", std)):
        if value is not None and len(value) != channels:
            raise GrowthError(
                f"the VAE of {name} has {setting}={value!r}, and its latents have {channels} channels: "
                "one number for each is needed."
            )


def check_widths(name: str, text: int, wanted: Any, setting: str) -> None:
    """Refuse text encoders that do not fit the denoiser.

    Args:
        name: Of the pipeline.
        text: Width of the text embeddings that the encoders give.
        wanted: Width that the denoiser takes, one number or one a block.
        setting: Its name in the denoiser's configuration.

    Raises:
        GrowthError: The message names both.
    """
    widths = set(wanted) if isinstance(wanted, list | tuple) else {wanted}
    if widths != {text}:
        raise GrowthError(
            f"the text encoders of {name} give embeddings of width {text}, and its denoiser has {setting}={wanted!r}: "
            "they belong to different models. Put the text encoders of the denoiser's model in their place."
        )


def check_unet_text(name: str, pipeline: Any) -> None:
    """Refuse text encoders that do not fit the UNet of a Stable Diffusion or SDXL pipeline.

    Raises:
        GrowthError: The message names both widths.
    """
    config = pipeline.unet.config
    encoders = [pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)]
    width = sum(encoder.config.hidden_size for encoder in encoders if encoder is not None)
    if config.get("encoder_hid_dim_type") == "text_proj":
        check_widths(
            name,
            text=width,
            wanted=config.encoder_hid_dim,
            setting="encoder_hid_dim",
        )
        return
    check_widths(
        name,
        text=width,
        wanted=config.cross_attention_dim,
        setting="cross_attention_dim",
    )
    if config.addition_embed_type == "text_time":
        pooled = pipeline.text_encoder_2.config.projection_dim
        taken = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        check_widths(
            name,
            text=pooled,
            wanted=taken,
            setting="projection_class_embeddings_input_dim less six sizes",
        )


def latent_multiple(unet: Any) -> int:
    """Number that the side of a UNet's latents must be a multiple of.

    Diffusers' usual blocks undo the halving of an odd number, the others do not.
    """
    blocks = unet.config.up_block_types
    if all(block in ODD_BLOCKS for block in blocks):
        return 1
    return 2 ** (len(blocks) - 1)


def native_side(unet: Any) -> int:
    """Side of the latents that a UNet was made for.

    Raises:
        ConfigError: Its configuration does not say, or names no square.
    """
    size = unet.config.sample_size
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) > 1 or None in sides:
        raise ConfigError(f"the UNet's sample_size is {size!r}, no side of a square: give --resolution.")
    return sides.pop()
