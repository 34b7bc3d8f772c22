"""Common part of the recipes that train any text-to-image pipeline, a UNet's or a transformer's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from torch import nn

from .arguments import FlowMatchingArguments
from .flow_matching import flow_family, is_flow
from .flow_pictures import draw_flow
from .lora import LoraSettings, add_lora
from .lora_file import check_lora_saves, save_lora
from .noise_schedule import refuse_prediction
from .text_to_image_recipe import TextToImageRecipe, guidance_scale


FlowArguments = TypeVar("FlowArguments", bound=FlowMatchingArguments)


class AnyPipelineRecipe(TextToImageRecipe[FlowArguments]):
    """Fine-tuning of a UNet, or of a transformer of one of the families.

    Attributes:
        adapts: Whether adapters train instead of the whole denoiser, and a LoRA is saved.
    """

    adapts = False

    def add_adapters(self, pipeline: Any, args: FlowArguments, lora: LoraSettings) -> None:
        """Give the denoiser adapters, the only parameters that train.

        Raises:
            GrowthError: A file would not give them back, or a setting does not fit.
        """
        if not is_flow(pipeline):
            refuse_prediction(pipeline, args.train.prediction_type)
        elif "target_modules" not in args.given:
            lora = replace(lora, target_modules=flow_family(pipeline).lora_targets())
        add_lora(self.denoiser(pipeline), lora, args.train.seed)
        check_lora_saves(pipeline, self.denoiser(pipeline))

    def denoiser(self, pipeline: Any) -> nn.Module:
        return pipeline.transformer if is_flow(pipeline) else super().denoiser(pipeline)

    def resolution(self, pipeline: Any) -> int:
        return flow_family(pipeline).resolution() if is_flow(pipeline) else super().resolution(pipeline)

    def multiple(self, pipeline: Any) -> int:
        return flow_family(pipeline).token_side if is_flow(pipeline) else super().multiple(pipeline)

    def draw(self, pipeline: Any, args: FlowArguments, titles: Sequence[str], size: int) -> list[Image.Image]:
        if not is_flow(pipeline):
            return super().draw(pipeline, args, titles, size)
        return draw_flow(
            pipeline,
            titles,
            size=size,
            steps=args.output.num_inference_steps,
            guidance=self.guidance(pipeline, args),
            seed=args.train.seed,
            max_sequence_length=args.flow.max_sequence_length,
            num_frames=args.flow.num_frames,
        )

    def guidance(self, pipeline: Any, args: FlowArguments) -> float:
        """Scale of classifier-free guidance of pictures."""
        if is_flow(pipeline):
            return guidance_scale(args, flow_family(pipeline).guidance_scale)
        return guidance_scale(args)

    def save_pipeline(self, pipeline: Any, output: Path) -> None:
        if self.adapts:
            save_lora(pipeline, self.denoiser(pipeline), output)
        else:
            super().save_pipeline(pipeline, output)
