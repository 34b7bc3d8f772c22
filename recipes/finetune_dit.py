"""Fine-tune a class-conditional DiT progressively: the main experiment of the AutoProg-Zero paper.

    accelerate launch recipes/finetune_dit.py --output_dir out

fine-tunes the small DiT beside this file, pretrained on sixteen classes of Twemoji, to ten new classes in a style it
has never seen, OpenMoji: under 5 minutes on 2 CPU cores. Flowers, CUB, ArtBench, Cars or your own images, one
sub-folder per class (or a `datasets` data set with a label column):

    accelerate launch recipes/finetune_dit.py --output_dir out \
        --pretrained_model_name_or_path facebook/DiT-XL-2-256 --train_data_dir my_classes --train_batch_size 32 \
        --max_train_steps 240000 --learning_rate 1e-4 --resolutions 64 128 192 256 --random_flip \
        --mixed_precision bf16

The classes of the data replace those of the checkpoint; classes of the same name keep their embedding. Results: a
plain DiTPipeline in the output folder, before_after.png with one column per class, timeline.png, growth.json and one
printed table. `--validation_prompts` chooses the classes of the pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import nn

from autoprog_diffusion.data.errors import DataError
from autoprog_diffusion.data.labelled import class_names, example_images, load_labelled_images
from autoprog_diffusion.growth import ConfigError
from autoprog_diffusion.tasks.arguments import (
    ClassConditionalArguments,
    hub_options,
    noise_settings,
)
from autoprog_diffusion.tasks.class_conditional import (
    ClassConditional,
    draw_classes,
    load_dit,
    set_classes,
    vae_factor,
)
from autoprog_diffusion.tasks.text_to_image_recipe import guidance_scale
from autoprog_diffusion.tasks.tiny_pipelines import load_tiny_dit
from autoprog_diffusion.training.recipe import Recipe
from autoprog_diffusion.training.recipe_arguments import TrainArguments
from autoprog_diffusion.training.run import main
from autoprog_diffusion.training.samples import Row


if TYPE_CHECKING:
    import datasets
    from accelerate import Accelerator

    from autoprog_diffusion.data.latents import Latents

ASSETS = Path(__file__).parent / "assets"
MOST_PICTURES = 12


class FinetuneDiT(Recipe[ClassConditionalArguments]):
    """Full fine-tuning of a DiT to the classes of the data."""

    name = "dit"
    default_model = ASSETS / "tiny_dit"
    squares_only = "a DiT draws squares of one size alone"
    defaults = ClassConditionalArguments()
    model_defaults = ClassConditionalArguments(
        train=TrainArguments(
            learning_rate=5e-4,
            lr_warmup_steps=50,
            max_train_steps=1200,
        )
    )

    def load(self, args: ClassConditionalArguments) -> Any:
        name = args.model.pretrained_model_name_or_path
        return load_dit(name, **hub_options(args)) if name else load_tiny_dit(ASSETS)

    def denoiser(self, pipeline: Any) -> nn.Module:
        return pipeline.transformer

    def resolution(self, pipeline: Any) -> int:
        return pipeline.transformer.config.sample_size * vae_factor(pipeline)

    def multiple(self, pipeline: Any) -> int:
        return pipeline.transformer.config.patch_size * vae_factor(pipeline)

    def data(
        self, args: ClassConditionalArguments, pipeline: Any, resolution: int, accelerator: Accelerator
    ) -> datasets.Dataset:
        del accelerator
        flags = args.data
        data = load_labelled_images(
            train_data_dir=flags.train_data_dir,
            dataset_name=flags.dataset_name,
            dataset_config_name=flags.dataset_config_name,
            image_column=flags.image_column,
            label_column=args.classes.label_column,
            max_train_samples=flags.max_train_samples,
            resolution=resolution,
            cache_dir=args.model.cache_dir,
            seed=args.train.seed,
            report=self.data_report,
        )
        names = class_names(data)
        self._rows = set_classes(pipeline, names, keep=args.classes.keep_classes, seed=args.train.seed)
        return data

    def validation(self, args: ClassConditionalArguments, pipeline: Any, resolution: int) -> datasets.Dataset | None:
        folder = args.evaluation.validation_data_dir
        if folder is None:
            return None
        data = load_labelled_images(
            train_data_dir=folder,
            image_column=args.data.image_column,
            label_column=args.classes.label_column,
            resolution=resolution,
            cache_dir=args.model.cache_dir,
        )
        unknown = [name for name in class_names(data) if name not in self._rows]
        if unknown:
            raise DataError(f"--validation_data_dir {folder} has classes that are not trained on: {unknown[:5]}.")
        return data

    def task(self, pipeline: Any, latents: Latents, args: ClassConditionalArguments) -> ClassConditional:
        self._data = latents.data  # what is trained on, for the real pictures
        return ClassConditional(pipeline, latents, noise_settings(args), args.classes)

    def titles(self, args: ClassConditionalArguments, data: datasets.Dataset) -> tuple[str, ...]:
        names = class_names(data)
        chosen = args.output.validation_prompts or tuple(names[:MOST_PICTURES])
        unknown = [name for name in chosen if name not in names]
        if unknown:
            raise ConfigError(f"--validation_prompts {unknown} are no classes of the data, which are {names[:20]}.")
        return chosen

    def draw(
        self, pipeline: Any, args: ClassConditionalArguments, titles: Sequence[str], size: int
    ) -> list[Image.Image]:
        return draw_classes(
            pipeline,
            [self._rows[title] for title in titles],
            steps=args.output.num_inference_steps,
            guidance=guidance_scale(args, 4.0),
            seed=args.train.seed,
        )

    def references(self, args: ClassConditionalArguments, titles: Sequence[str], size: int) -> list[Row]:
        return [("real", example_images(self._data, titles, size))]


if __name__ == "__main__":
    main(FinetuneDiT(), sys.argv[1:], __doc__)
