"""Fine-tune a Stable Diffusion XL pipeline progressively.

    accelerate launch recipes/finetune_sdxl.py --output_dir out

fine-tunes the small emoji pipeline beside this file, converted to the SDXL architecture with the same function, from
Twemoji to OpenMoji, a style it has never seen: under 5 minutes on 2 CPU cores. Your own model and data:

    accelerate launch recipes/finetune_sdxl.py --output_dir out \
        --pretrained_model_name_or_path stabilityai/stable-diffusion-xl-base-1.0 --train_data_dir my_images \
        --resolution 1024 --resolutions 512 768 1024 1024 --train_batch_size 1 --gradient_accumulation_steps 4 \
        --gradient_checkpointing --max_train_steps 10000 --learning_rate 1e-5 --mixed_precision bf16

`--help` lists every flag; they carry the names of Diffusers' train_text_to_image_sdxl.py. `--buckets` trains images at
their own aspect ratio. Image sizes, crops and target size are conditions of SDXL: they follow the bucket, and the
resolution of the growing stage. The VAE works in float32. Results: a plain StableDiffusionXLPipeline in the output
folder, before_after.png, timeline.png, growth.json and one printed table.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprog_diffusion.tasks.arguments import SDXLArguments, hub_options, noise_settings
from autoprog_diffusion.tasks.sd_to_sdxl import sdxl_from_sd
from autoprog_diffusion.tasks.sdxl import TextToImageXL, load_sdxl
from autoprog_diffusion.tasks.stable_diffusion import load_pipeline
from autoprog_diffusion.tasks.text_to_image_recipe import TextToImageRecipe
from autoprog_diffusion.training.recipe_arguments import TrainArguments
from autoprog_diffusion.training.run import main


if TYPE_CHECKING:
    from autoprog_diffusion.data.latents import Latents


class FinetuneSDXL(TextToImageRecipe[SDXLArguments]):
    """Full fine-tuning of the UNet."""

    name = "sdxl"
    default_model = Path(__file__).parent / "assets" / "tiny_sd"
    defaults = SDXLArguments()
    model_defaults = SDXLArguments(
        train=TrainArguments(
            learning_rate=5e-4,
            lr_warmup_steps=50,
            max_train_steps=700,
        )
    )

    def load(self, args: SDXLArguments) -> Any:
        name = args.model.pretrained_model_name_or_path
        if name:
            return load_sdxl(name, **hub_options(args))
        return sdxl_from_sd(load_pipeline(str(self.default_model)))

    def task(self, pipeline: Any, latents: Latents, args: SDXLArguments) -> TextToImageXL:
        return TextToImageXL(pipeline, latents, noise_settings(args), empty=args.xl.proportion_empty_prompts)


if __name__ == "__main__":
    main(FinetuneSDXL(), sys.argv[1:], __doc__)
