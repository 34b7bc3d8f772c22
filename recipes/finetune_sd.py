"""Fine-tune a Stable-Diffusion-class text-to-image pipeline progressively.

    accelerate launch recipes/finetune_sd.py --output_dir out

fine-tunes the small emoji pipeline beside this file from Twemoji, the style it was pretrained on, to OpenMoji, a style
it has never seen: about 5 minutes on 2 CPU cores. Your own model and data:

    accelerate launch recipes/finetune_sd.py --output_dir out \
        --pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5 --train_data_dir my_images \
        --resolution 512 --train_batch_size 4 --max_train_steps 10000 --mixed_precision bf16

`--help` lists every flag; they carry the names of Diffusers' train_text_to_image.py. `--growth off` is plain full
fine-tuning in the same loop. Images that do not train are evaluated on the way, and the best weights are saved
(docs/held_out.md). Results: a plain Diffusers pipeline in the output folder, before_after.png, timeline.png,
growth.json (plan, measurements), held_out.json and one printed table.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprog_diffusion.tasks.arguments import TextToImageArguments, hub_options, noise_settings
from autoprog_diffusion.tasks.stable_diffusion import TextToImage, load_pipeline
from autoprog_diffusion.tasks.text_to_image_recipe import TextToImageRecipe
from autoprog_diffusion.training.recipe_arguments import TrainArguments
from autoprog_diffusion.training.run import main


if TYPE_CHECKING:
    from autoprog_diffusion.data.latents import Latents


class FinetuneSD(TextToImageRecipe[TextToImageArguments]):
    """Full fine-tuning of the UNet."""

    name = "sd"
    default_model = Path(__file__).parent / "assets" / "tiny_sd"
    defaults = TextToImageArguments()
    model_defaults = TextToImageArguments(
        train=TrainArguments(
            learning_rate=5e-4,
            lr_warmup_steps=50,
            max_train_steps=640,
        )
    )

    def load(self, args: TextToImageArguments) -> Any:
        return load_pipeline(self.model_name(args), **hub_options(args))

    def task(self, pipeline: Any, latents: Latents, args: TextToImageArguments) -> TextToImage:
        return TextToImage(pipeline, latents, noise_settings(args), empty=args.captions.proportion_empty_prompts)


if __name__ == "__main__":
    main(FinetuneSD(), sys.argv[1:], __doc__)
