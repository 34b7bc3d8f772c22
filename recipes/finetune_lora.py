"""Train a LoRA; with a flag of the schedule progressively: adapters freeze block by block.

    accelerate launch recipes/finetune_lora.py --output_dir out

trains a LoRA of rank 16 on the small emoji pipeline beside this file, from Twemoji to OpenMoji, a style it has never
seen: under 5 minutes on 2 CPU cores. All adapters train for the whole run, and their average is saved: that measured
better than freezing them late. --num_stages 4 freezes them from the input to the output, so that late steps need no
gradient in the front. Your own model (of any family in docs/recipes.md but PixArt-Sigma and DiT) and data:

    accelerate launch recipes/finetune_lora.py --output_dir out \
        --pretrained_model_name_or_path stabilityai/stable-diffusion-xl-base-1.0 --train_data_dir my_images \
        --rank 16 --resolution 1024 --train_batch_size 1 --learning_rate 1e-4 --max_train_steps 2000 \
        --mixed_precision bf16 --gradient_checkpointing

`--help` lists every flag; they carry the names of Diffusers' train_text_to_image_lora.py. Results in the output
folder: pytorch_lora_weights.safetensors for `pipeline.load_lora_weights("out")`, before_after.png, timeline.png,
growth.json and one printed table. The stage embedding is off: it would live in a bias of the base model, which a LoRA
file does not hold. With --stage_embedding it is saved beside, for `autoprog_diffusion.adapters.use_stage_embedding`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

from autoprog_diffusion.tasks.any_pipeline_recipe import AnyPipelineRecipe
from autoprog_diffusion.tasks.arguments import LoraArguments, hub_options, noise_settings
from autoprog_diffusion.tasks.flow_flags import check_flow_flags
from autoprog_diffusion.tasks.flow_matching import FlowMatching, is_flow
from autoprog_diffusion.tasks.lora import LoraSettings, load_any
from autoprog_diffusion.tasks.sdxl import TextToImageXL
from autoprog_diffusion.tasks.stable_diffusion import TextToImage
from autoprog_diffusion.training.arguments import GrowthArguments
from autoprog_diffusion.training.diffusion import Task
from autoprog_diffusion.training.recipe_arguments import TrainArguments
from autoprog_diffusion.training.run import main


if TYPE_CHECKING:
    from autoprog_diffusion.data.latents import Latents


class FinetuneLora(AnyPipelineRecipe[LoraArguments]):
    """Adapters on the denoiser of any text-to-image pipeline that the other recipes train in full."""

    name = "lora"
    adapts = True
    default_model = Path(__file__).parent / "assets" / "tiny_sd"
    defaults = LoraArguments(growth=GrowthArguments(stage_embedding=False))
    model_defaults = replace(
        defaults,
        train=TrainArguments(
            learning_rate=2e-3,
            lr_warmup_steps=50,
            max_train_steps=700,
        ),
        # The small UNet's drawing style is in its convolutions: its attention sees 8x8 pixels at most.
        lora=LoraSettings(
            rank=16, target_modules=("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv_shortcut")
        ),
    )

    def load(self, args: LoraArguments) -> Any:
        pipeline = load_any(self.model_name(args), **hub_options(args))
        self.add_adapters(pipeline, args, args.lora)
        return pipeline

    def task(self, pipeline: Any, latents: Latents, args: LoraArguments) -> Task:
        noise = noise_settings(args)
        if is_flow(pipeline):
            return FlowMatching(pipeline, latents, args.flow, noise)
        check_flow_flags(args.flow)
        kind = TextToImageXL if isinstance(pipeline, StableDiffusionXLPipeline) else TextToImage
        return kind(pipeline, latents, noise, empty=args.flow.proportion_empty_prompts)


if __name__ == "__main__":
    main(FinetuneLora(), sys.argv[1:], __doc__)
