"""Tiny random pipelines of the newer families, as `pipelines.py` has of the first."""

from __future__ import annotations

from typing import Any

import diffusers

from . import pipelines


def inpaint() -> Any:
    """Stable Diffusion whose UNet also gets a mask and the masked picture."""
    pipeline = pipelines.stable_diffusion()
    parts = {name: getattr(pipeline, name) for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    return diffusers.StableDiffusionInpaintPipeline(
        **parts,
        unet=pipelines._unet(cross_attention_dim=16, in_channels=9),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
