"""The inputs of one training step of every denoiser class: shapes only, from the model's configuration."""

from __future__ import annotations

from typing import Any

from .image_inputs import (
    cogview4_inputs,
    dit_inputs,
    flux2_inputs,
    flux_inputs,
    hunyuan_dit_inputs,
    lumina2_inputs,
    packed_inputs,
    pixart_inputs,
    qwen_inputs,
    sd3_inputs,
    text_to_image_inputs,
    unet2d_inputs,
    unet_inputs,
    z_image_inputs,
)
from .shapes import Builder, Inputs, Shape
from .video_inputs import (
    hunyuan_video_inputs,
    ltx_inputs,
    svd_inputs,
    unet_motion_inputs,
    unet_video_inputs,
    video_inputs,
)


# Not here: classes whose shapes depend on values (Mochi), or that need more than a configuration says.
BUILDERS: dict[str, Builder] = {
    "AllegroTransformer3DModel": video_inputs("caption_channels"),
    "AuraFlowTransformer2DModel": text_to_image_inputs("joint_attention_dim", 256),
    "BriaTransformer2DModel": packed_inputs,
    "ChromaTransformer2DModel": packed_inputs,
    "CogVideoXTransformer3DModel": video_inputs("text_embed_dim", 226, frames_first=True),
    "CogView4Transformer2DModel": cogview4_inputs,
    "DiTTransformer2DModel": dit_inputs,
    "Flux2Transformer2DModel": flux2_inputs,
    "FluxTransformer2DModel": flux_inputs,
    "HunyuanDiT2DModel": hunyuan_dit_inputs,
    "HunyuanVideoTransformer3DModel": hunyuan_video_inputs,
    "LTXVideoTransformer3DModel": ltx_inputs,
    "LatteTransformer3DModel": video_inputs("caption_channels"),
    "Lumina2Transformer2DModel": lumina2_inputs,
    "PixArtTransformer2DModel": pixart_inputs,
    "QwenImageTransformer2DModel": qwen_inputs,
    "SD3Transformer2DModel": sd3_inputs,
    "SanaTransformer2DModel": text_to_image_inputs("caption_channels", 300),
    "SkyReelsV2Transformer3DModel": video_inputs("text_dim"),
    "UNet2DConditionModel": unet_inputs,
    "UNet2DModel": unet2d_inputs,
    "UNet3DConditionModel": unet_video_inputs,
    "UNetMotionModel": unet_motion_inputs,
    "UNetSpatioTemporalConditionModel": svd_inputs,
    "WanTransformer3DModel": video_inputs("text_dim"),
    "ZImageTransformer2DModel": z_image_inputs,
}


def make_inputs(model: Any, shape: Shape) -> Inputs:
    """Keyword arguments of a forward pass, on the default device.

    Args:
        model: A Diffusers model of one of `known_classes()`.
        shape: Of the batch.
    """
    return BUILDERS[type(model).__name__](
        model.config,
        shape,
    )


def known_classes() -> list[str]:
    """Names of the classes whose inputs can be made."""
    return sorted(BUILDERS)
