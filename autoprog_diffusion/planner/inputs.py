"""The inputs of one training step of every denoiser class: shapes only, from the model's configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """The size of a batch.

    Attributes:
        batch: Images.
        side: Side of the latents, before any packing; None is what the model was made for.
        text: Tokens of text; None is as many as the model's pipeline takes.
        frames: Latent frames of a video.
    """

    batch: int = 1
    side: int | None = None
    text: int | None = None
    frames: int = 4


Inputs = dict[str, Any]
Builder = Callable[[Any, Shape], Inputs]
LATENT_SIDE = 128  # of 1024 pixels, where a configuration does not say
PACKED = 2  # latents of packed models that make a token, along a side


def make_inputs(model: Any, shape: Shape) -> Inputs:
    """Keyword arguments of a forward pass, on the default device.

    Args:
        model: A Diffusers model of one of `known_classes()`.
        shape: Of the batch.
    """
    return _BUILDERS[type(model).__name__](model.config, shape)


def known_classes() -> list[str]:
    """Names of the classes whose inputs can be made."""
    return sorted(_BUILDERS)


def default_side(cls: str, config: Any) -> int:
    """Side of the latents that a model was made for, before any packing."""
    side = config.get("sample_size") if hasattr(config, "get") else None
    if isinstance(side, (list, tuple)):
        side = side[0]
    return side or LATENT_SIDE


def _side(config: Any, shape: Shape) -> int:
    return shape.side or default_side("", config)


def _image(config: Any, shape: Shape) -> Tensor:
    side = _side(config, shape)
    return torch.randn(shape.batch, config.in_channels, side, side)


def _steps(shape: Shape) -> Tensor:
    return torch.ones(shape.batch, dtype=torch.long)


def _text(shape: Shape, tokens: int, width: int) -> Tensor:
    return torch.randn(shape.batch, shape.text or tokens, width)


def _unet(config: Any, shape: Shape) -> Inputs:
    inputs: Inputs = {
        "sample": _image(config, shape),
        "timestep": _steps(shape),
        "encoder_hidden_states": _text(shape, 77, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(shape.batch, pooled),
            "time_ids": torch.ones(shape.batch, 6),
        }
    return inputs


def _unet2d(config: Any, shape: Shape) -> Inputs:
    return {"sample": _image(config, shape), "timestep": _steps(shape)}


def _unet_video(config: Any, shape: Shape) -> Inputs:
    side = _side(config, shape)
    return {
        "sample": torch.randn(shape.batch, config.in_channels, shape.frames, side, side),
        "timestep": _steps(shape),
        "encoder_hidden_states": _text(shape, 77, config.cross_attention_dim),
    }


def _unet_motion(config: Any, shape: Shape) -> Inputs:
    of_frames = Shape(shape.batch * shape.frames, shape.side, shape.text)
    text = _text(of_frames, 77, config.cross_attention_dim)
    return {**_unet_video(config, shape), "encoder_hidden_states": text}


def _svd(config: Any, shape: Shape) -> Inputs:
    side = _side(config, shape)
    return {
        "sample": torch.randn(shape.batch, shape.frames, config.in_channels, side, side),
        "timestep": _steps(shape),
        "encoder_hidden_states": _text(shape, 1, config.cross_attention_dim),
        "added_time_ids": torch.ones(shape.batch, 3),
    }


def _dit(config: Any, shape: Shape) -> Inputs:
    return {
        "hidden_states": _image(config, shape),
        "timestep": _steps(shape),
        "class_labels": _steps(shape),
    }


def _text_to_image(width: str, tokens: int) -> Builder:
    """Images and text, whose width is the configuration's `width`."""

    def build(config: Any, shape: Shape) -> Inputs:
        return {
            "hidden_states": _image(config, shape),
            "encoder_hidden_states": _text(shape, tokens, getattr(config, width)),
            "timestep": _steps(shape),
        }

    return build


def _sd3(config: Any, shape: Shape) -> Inputs:
    inputs = _text_to_image("joint_attention_dim", 77 + 256)(config, shape)
    return {**inputs, "pooled_projections": torch.randn(shape.batch, config.pooled_projection_dim)}


def _pixart(config: Any, shape: Shape) -> Inputs:
    inputs = _text_to_image("caption_channels", 300)(config, shape)
    sizes: Inputs = {"resolution": None, "aspect_ratio": None}
    if config.use_additional_conditions:
        sizes = {"resolution": torch.ones(shape.batch, 2), "aspect_ratio": torch.ones(shape.batch, 1)}
    return {**inputs, "added_cond_kwargs": sizes}


def _lumina2(config: Any, shape: Shape) -> Inputs:
    inputs = _text_to_image("cap_feat_dim", 256)(config, shape)
    text = inputs["encoder_hidden_states"]
    mask = torch.ones(text.shape[:2], dtype=torch.bool)
    return {**inputs, "timestep": torch.ones(shape.batch), "encoder_attention_mask": mask}


def _cogview4(config: Any, shape: Shape) -> Inputs:
    pairs = dict.fromkeys(("original_size", "target_size", "crop_coords"), torch.ones(shape.batch, 2))
    return {**_text_to_image("text_embed_dim", 224)(config, shape), **pairs}


def _hunyuan_dit(config: Any, shape: Shape) -> Inputs:
    side = _side(config, shape) // config.patch_size
    angles = torch.ones(side * side, config.attention_head_dim)
    batch = shape.batch
    return {
        "hidden_states": _image(config, shape),
        "timestep": torch.ones(batch),
        "encoder_hidden_states": torch.randn(batch, config.text_len, config.cross_attention_dim),
        "text_embedding_mask": torch.ones(batch, config.text_len),
        "encoder_hidden_states_t5": torch.randn(batch, config.text_len_t5, config.cross_attention_dim_t5),
        "text_embedding_mask_t5": torch.ones(batch, config.text_len_t5),
        "image_meta_size": torch.ones(batch, 6),
        "style": torch.zeros(batch, dtype=torch.long),
        "image_rotary_emb": (angles, angles),
    }


def _tokens(config: Any, shape: Shape, text: int = 512) -> Inputs:
    """Packed latents and text."""
    side = _side(config, shape) // PACKED
    return {
        "hidden_states": torch.randn(shape.batch, side * side, config.in_channels),
        "encoder_hidden_states": _text(shape, text, config.joint_attention_dim),
        "timestep": torch.ones(shape.batch),
    }


def _with_ids(config: Any, shape: Shape, axes: int) -> Inputs:
    """Packed latents and text, each token with its position."""
    inputs = _tokens(config, shape)
    return {
        **inputs,
        "img_ids": torch.zeros(inputs["hidden_states"].shape[1], axes),
        "txt_ids": torch.zeros(inputs["encoder_hidden_states"].shape[1], axes),
    }


def _flux(config: Any, shape: Shape) -> Inputs:
    inputs = _with_ids(config, shape, axes=3)
    inputs["pooled_projections"] = torch.randn(shape.batch, config.pooled_projection_dim)
    if config.guidance_embeds:
        inputs["guidance"] = torch.ones(shape.batch)
    return inputs


def _flux2(config: Any, shape: Shape) -> Inputs:
    return {**_with_ids(config, shape, axes=4), "guidance": torch.ones(shape.batch)}


def _packed(config: Any, shape: Shape) -> Inputs:
    return _with_ids(config, shape, axes=3)


def _qwen(config: Any, shape: Shape) -> Inputs:
    side = _side(config, shape) // PACKED
    return {**_tokens(config, shape), "img_shapes": [(1, side, side)] * shape.batch}


def _z_image(config: Any, shape: Shape) -> Inputs:
    side = _side(config, shape)
    text = shape.text or 512
    return {
        "x": [torch.randn(config.in_channels, 1, side, side) for _ in range(shape.batch)],
        "t": torch.ones(shape.batch),
        "cap_feats": [torch.randn(text, config.cap_feat_dim) for _ in range(shape.batch)],
    }


def _video(width: str, tokens: int = 256, *, frames_first: bool = False) -> Builder:
    """Latents of a video, and text."""

    def build(config: Any, shape: Shape) -> Inputs:
        side = shape.side or getattr(config, "sample_height", None) or default_side("", config)
        sizes = (shape.frames, config.in_channels) if frames_first else (config.in_channels, shape.frames)
        return {
            "hidden_states": torch.randn(shape.batch, *sizes, side, side),
            "encoder_hidden_states": _text(shape, tokens, getattr(config, width)),
            "timestep": _steps(shape),
        }

    return build


def _masked(build: Builder, dtype: torch.dtype) -> Builder:
    """Inputs with a mask of the text."""

    def with_mask(config: Any, shape: Shape) -> Inputs:
        inputs = build(config, shape)
        mask = torch.ones(inputs["encoder_hidden_states"].shape[:2], dtype=dtype)
        return {**inputs, "encoder_attention_mask": mask}

    return with_mask


def _hunyuan_video(config: Any, shape: Shape) -> Inputs:
    inputs = _masked(_video("text_embed_dim"), torch.long)(config, shape)
    inputs["pooled_projections"] = torch.randn(shape.batch, config.pooled_projection_dim)
    if config.guidance_embeds:
        inputs["guidance"] = torch.ones(shape.batch)
    return inputs


def _ltx(config: Any, shape: Shape) -> Inputs:
    side = shape.side or 16
    inputs: Inputs = {
        "hidden_states": torch.randn(shape.batch, shape.frames * side * side, config.in_channels),
        "encoder_hidden_states": _text(shape, 128, config.caption_channels),
        "timestep": _steps(shape),
        "num_frames": shape.frames,
        "height": side,
        "width": side,
    }
    mask = torch.ones(inputs["encoder_hidden_states"].shape[:2], dtype=torch.bool)
    return {**inputs, "encoder_attention_mask": mask}


# Not here: classes whose shapes depend on values (Mochi), or that need more than a configuration says.
_BUILDERS: dict[str, Builder] = {
    "AllegroTransformer3DModel": _video("caption_channels"),
    "AuraFlowTransformer2DModel": _text_to_image("joint_attention_dim", 256),
    "BriaTransformer2DModel": _packed,
    "ChromaTransformer2DModel": _packed,
    "CogVideoXTransformer3DModel": _video("text_embed_dim", 226, frames_first=True),
    "CogView4Transformer2DModel": _cogview4,
    "DiTTransformer2DModel": _dit,
    "Flux2Transformer2DModel": _flux2,
    "FluxTransformer2DModel": _flux,
    "HunyuanDiT2DModel": _hunyuan_dit,
    "HunyuanVideoTransformer3DModel": _hunyuan_video,
    "LTXVideoTransformer3DModel": _ltx,
    "LatteTransformer3DModel": _video("caption_channels"),
    "Lumina2Transformer2DModel": _lumina2,
    "PixArtTransformer2DModel": _pixart,
    "QwenImageTransformer2DModel": _qwen,
    "SD3Transformer2DModel": _sd3,
    "SanaTransformer2DModel": _text_to_image("caption_channels", 300),
    "SkyReelsV2Transformer3DModel": _video("text_dim"),
    "UNet2DConditionModel": _unet,
    "UNet2DModel": _unet2d,
    "UNet3DConditionModel": _unet_video,
    "UNetMotionModel": _unet_motion,
    "UNetSpatioTemporalConditionModel": _svd,
    "WanTransformer3DModel": _video("text_dim"),
    "ZImageTransformer2DModel": _z_image,
}
