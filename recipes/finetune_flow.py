"""Fine-tune a text-to-image transformer progressively: SD3, Flux, Qwen-Image, Z-Image and others.

    accelerate launch recipes/finetune_flow.py --output_dir out

fine-tunes the small SD3 pipeline beside this file, pretrained on Twemoji, to OpenMoji, a style it has never seen:
under 5 minutes on 2 CPU cores. Your own model and data:

    accelerate launch recipes/finetune_flow.py --output_dir out \
        --pretrained_model_name_or_path stabilityai/stable-diffusion-3.5-medium --train_data_dir my_images \
        --resolution 512 --train_batch_size 4 --max_train_steps 5000 --resolutions 256 384 512 512 \
        --mixed_precision bf16 --gradient_checkpointing

Families: Stable Diffusion 3 and 3.5, Flux.1, Flux.2 Klein, Qwen-Image, Z-Image, Sana, Lumina-Image 2.0, Wan (pictures)
and PixArt-Sigma; each is trained as its own pipeline samples (docs/recipes.md). Data and flags are those of
finetune_sd.py, and Diffusers' --weighting_scheme and its settings. The shift of time follows the stage's resolution.
Results: a plain pipeline in the output folder, before_after.png, timeline.png, growth.json and one printed table.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprog_diffusion.tasks.any_pipeline_recipe import AnyPipelineRecipe
from autoprog_diffusion.tasks.arguments import FlowMatchingArguments, hub_options, noise_settings
from autoprog_diffusion.tasks.flow_flags import check_flow_flags
from autoprog_diffusion.tasks.flow_matching import (
    FlowMatching,
    FlowSettings,
    flow_family,
    load_flow,
)
from autoprog_diffusion.tasks.text_denoising import TextDenoising
from autoprog_diffusion.tasks.tiny_pipelines import load_tiny_flow
from autoprog_diffusion.training.diffusion import Task
from autoprog_diffusion.training.recipe_arguments import TrainArguments
from autoprog_diffusion.training.run import main


if TYPE_CHECKING:
    from autoprog_diffusion.data.latents import Latents

ASSETS = Path(__file__).parent / "assets"


class FinetuneFlow(AnyPipelineRecipe[FlowMatchingArguments]):
    """Full fine-tuning of a transformer on captioned images."""

    name = "flow"
    default_model = ASSETS / "tiny_flow"
    defaults = FlowMatchingArguments()
    model_defaults = FlowMatchingArguments(
        train=TrainArguments(
            learning_rate=5e-4,
            lr_warmup_steps=50,
            max_train_steps=1000,
        ),
        flow=FlowSettings(max_sequence_length=16, proportion_empty_prompts=0.1),
    )

    def load(self, args: FlowMatchingArguments) -> Any:
        name = args.model.pretrained_model_name_or_path
        return load_flow(name, **hub_options(args)) if name else load_tiny_flow(ASSETS)

    def task(self, pipeline: Any, latents: Latents, args: FlowMatchingArguments) -> Task:
        noise = noise_settings(args)
        if flow_family(pipeline).process == "flow":
            return FlowMatching(pipeline, latents, args.flow, noise)
        check_flow_flags(args.flow, takes_length=True)
        return TextDenoising(
            pipeline,
            latents,
            noise,
            empty=args.flow.proportion_empty_prompts,
            max_sequence_length=args.flow.max_sequence_length,
        )


if __name__ == "__main__":
    main(FinetuneFlow(), sys.argv[1:], __doc__)
