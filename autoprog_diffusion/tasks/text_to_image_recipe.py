"""Common part of the text-to-image recipes: prompts, pictures, and the real pictures beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import nn

from autoprog_diffusion.data.caption_text import first_captions
from autoprog_diffusion.data.emoji import DEFAULT_STYLE, emoji_dataset
from autoprog_diffusion.data.rows import spread
from autoprog_diffusion.data.sources import default_data
from autoprog_diffusion.training.recipe import AnyArguments, Recipe
from autoprog_diffusion.training.recipe_arguments import Arguments
from autoprog_diffusion.training.samples import Row, sample_images

from .parts import latent_multiple, native_side


if TYPE_CHECKING:
    from datasets import Dataset

# Held-out emoji: the fine-tuning never sees their pictures in the new style.
DEFAULT_PROMPTS = 12


class TextToImageRecipe(Recipe[AnyArguments]):
    """Fine-tuning of a UNet on captioned images; the default data are emoji in a style that the model has not seen."""

    def denoiser(self, pipeline: Any) -> nn.Module:
        return pipeline.unet

    def resolution(self, pipeline: Any) -> int:
        return native_side(pipeline.unet) * pipeline.vae_scale_factor

    def multiple(self, pipeline: Any) -> int:
        return pipeline.vae_scale_factor * latent_multiple(pipeline.unet)

    def drawn_multiple(self, pipeline: Any) -> int:
        multiple = self.multiple(pipeline)
        # Whatever their VAE, Stable Diffusion's pipelines draw multiples of 8 pixels only.
        return math.lcm(multiple, 8) if hasattr(pipeline, "unet") else multiple

    def validation(self, args: AnyArguments, pipeline: Any, resolution: int) -> Dataset | None:
        if args.evaluation.validation_data_dir is None and is_default_data(args):
            # They are never trained on.
            return default_data(lambda: emoji_dataset(DEFAULT_STYLE, size=resolution, split="held_out"))
        return super().validation(args, pipeline, resolution)

    def titles(self, args: AnyArguments, data: Dataset) -> tuple[str, ...]:
        return args.output.validation_prompts or default_prompts(args, data)

    def draw(self, pipeline: Any, args: AnyArguments, titles: Sequence[str], size: int) -> list[Image.Image]:
        return sample_images(
            pipeline,
            titles,
            size=size,
            steps=args.output.num_inference_steps,
            guidance=guidance_scale(args),
            seed=args.train.seed,
        )

    def references(self, args: AnyArguments, titles: Sequence[str], size: int) -> list[Row]:
        return reference_row(args, titles, size)


def guidance_scale(args: Arguments, usual: float = 7.5) -> float:
    """Scale of classifier-free guidance of pictures: the flag's, 3.0 for the default model, `usual` for others."""
    if args.output.guidance_scale is not None:
        return args.output.guidance_scale
    return usual if args.model.pretrained_model_name_or_path else 3.0


def is_default_data(args: Arguments) -> bool:
    """Whether the run trains on the emoji that come with the package."""
    return not args.data.train_data_dir and not args.data.dataset_name


def default_prompts(args: Arguments, data: Dataset) -> tuple[str, ...]:
    """Captions to draw: held-out emoji, evenly spread over the categories, or the first captions of other data."""
    if not is_default_data(args):
        return first_captions(data, DEFAULT_PROMPTS // 2)
    held_out = emoji_dataset(DEFAULT_STYLE, size=8, split="held_out")
    by_category = sorted(zip(held_out["category"], held_out["text"]))
    rows = spread(len(by_category), DEFAULT_PROMPTS)
    return tuple(by_category[row][1] for row in rows)


def reference_row(args: Arguments, prompts: Sequence[str], size: int) -> list[Row]:
    """The real pictures of the prompts in the new style, where they are known."""
    if not is_default_data(args):
        return []
    emoji = emoji_dataset(DEFAULT_STYLE, size=size)
    known = dict(zip(emoji["text"], emoji["image"]))
    if not known.keys() >= set(prompts):
        return []
    return [("real", [known[prompt] for prompt in prompts])]
