"""Pictures of a flow-matching pipeline, as its family asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from autoprog_diffusion.training.samples import sampling, seeds

from .flow_matching import flow_family, text_length


def draw_flow(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    size: int,
    steps: int,
    guidance: float | None,
    seed: int,
    max_sequence_length: int | None = None,
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
    """
    family = flow_family(pipeline)
    scale = family.guidance_scale if guidance is None else guidance
    with sampling(pipeline):
        output = pipeline(
            prompt=list(prompts),
            height=size,
            width=size,
            num_inference_steps=steps,
            generator=seeds(seed, len(prompts)),
            **family.drawing(scale, text_length(pipeline, max_sequence_length)),
        )
    return family.pictures(output)
