"""Pictures by a pipeline's own call, with the arguments that its family takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from autoprog_diffusion.training.samples import sampling, seeds

from .flow_matching import flow_family, is_flow, text_length


def draw_flow(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    size: int,
    steps: int,
    guidance: float | None,
    seed: int,
    max_sequence_length: int | None = None,
    num_frames: int = 1,
) -> list[Image.Image]:
    """One image per prompt, every prompt with a seed of its own (`seed`, `seed + 1`, ...).

    Args:
        pipeline: Of one of the families.
        prompts: What to draw.
        size: Side of the images in pixels.
        steps: Denoising steps.
        guidance: Scale of classifier-free guidance; None takes the family's.
        seed: Of the first prompt.
        max_sequence_length: Tokens of text; None takes the pipeline's own number.
        num_frames: Of videos, of which the first frame is returned.
    """
    scale = flow_family(pipeline).guidance_scale if guidance is None else guidance
    with sampling(pipeline):
        return draw_with(
            pipeline,
            prompts,
            seeds(seed, len(prompts)),
            size=size,
            steps=steps,
            guidance=scale,
            max_sequence_length=max_sequence_length,
            num_frames=num_frames,
        )


def draw_with(
    pipeline: Any,
    prompts: Sequence[str],
    generators: list[torch.Generator],
    *,
    size: int,
    steps: int,
    guidance: float,
    max_sequence_length: int | None = None,
    num_frames: int = 1,
) -> list[Image.Image]:
    """One image per prompt by the pipeline's own call, as the pipeline is.

    Args:
        pipeline: Text to image, of one of the families or not.
        prompts: What to draw.
        generators: One for every image.
        size: Side of the images in pixels.
        steps: Denoising steps.
        guidance: Scale of classifier-free guidance.
        max_sequence_length: Tokens of text that a family takes; None takes the pipeline's own number.
        num_frames: Of videos, of which the first frame is returned.
    """
    family = flow_family(pipeline, frames=num_frames) if is_flow(pipeline) else None
    options: dict[str, Any] = {"guidance_scale": guidance}
    if family is not None:
        options = family.drawing(guidance, text_length(pipeline, max_sequence_length))
    output = pipeline(
        prompt=list(prompts),
        height=size,
        width=size,
        num_inference_steps=steps,
        generator=generators,
        **options,
    )
    return output.images if family is None else family.pictures(output)
