"""Denoisers with the inputs they take: four of published size, tiny ones of the same classes, and three small ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from common import ROOT
from torch import nn

from autoprog_diffusion.search.recorded_calls import RecordedCall, output_tensor


Model = tuple[nn.Module, dict[str, Any]]


@dataclass(frozen=True)
class Published:
    """A published model and how it is trained here.

    Attributes:
        name: What people call it.
        cls: Its class in Diffusers.
        config: Of the published checkpoint, where it is not the default of the class.
        tiny: On top of that, for a model of a few hundred thousand parameters.
        pixels: Side of the training images.
        batch: Images per GPU and step.
        wrap: Classes that FSDP2 shards one by one (`fsdp_transformer_layer_cls_to_wrap`).
        inputs: Keyword arguments of one forward pass, a batch of one.
    """

    name: str
    cls: str
    config: dict[str, Any]
    tiny: dict[str, Any]
    pixels: int
    batch: int
    wrap: tuple[str, ...]
    inputs: Callable[[Any], dict[str, Any]]

    def build(self, tiny: bool = False) -> nn.Module:
        """The model with random weights; under `torch.device("meta")` it holds no memory."""
        return getattr(diffusers, self.cls)(**{**self.config, **(self.tiny if tiny else {})})


def unet_inputs(config: Any) -> dict[str, Any]:
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return {
        "sample": torch.randn(1, config.in_channels, config.sample_size, config.sample_size),
        "timestep": torch.ones(1, dtype=torch.long),
        "encoder_hidden_states": torch.randn(1, 77, config.cross_attention_dim),
        "added_cond_kwargs": {"text_embeds": torch.randn(1, pooled), "time_ids": torch.ones(1, 6)},
    }


def sd3_inputs(config: Any) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, config.in_channels, config.sample_size, config.sample_size),
        "encoder_hidden_states": torch.randn(1, 154, config.joint_attention_dim),
        "pooled_projections": torch.randn(1, config.pooled_projection_dim),
        "timestep": torch.ones(1),
    }


def flux_inputs(config: Any) -> dict[str, Any]:
    tokens = 4096 if config.num_attention_heads == 24 else 16
    return {
        "hidden_states": torch.randn(1, tokens, config.in_channels),
        "encoder_hidden_states": torch.randn(1, 512, config.joint_attention_dim),
        "pooled_projections": torch.randn(1, config.pooled_projection_dim),
        "timestep": torch.ones(1),
        "guidance": torch.ones(1),
        "img_ids": torch.zeros(tokens, 3),
        "txt_ids": torch.zeros(512, 3),
    }


def dit_inputs(config: Any) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, config.in_channels, config.sample_size, config.sample_size),
        "timestep": torch.ones(1, dtype=torch.long),
        "class_labels": torch.ones(1, dtype=torch.long),
    }


SDXL = Published(
    "SDXL",
    "UNet2DConditionModel",
    {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    {
        "sample_size": 8,
        "block_out_channels": (4, 6, 10),
        "norm_num_groups": 2,
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (2, 2, 2),
        "cross_attention_dim": 7,
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 31,
    },
    pixels=1024,
    batch=4,
    wrap=("ResnetBlock2D", "Transformer2DModel"),
    inputs=unet_inputs,
)
SD3 = Published(
    "SD3 medium",
    "SD3Transformer2DModel",
    {
        "sample_size": 128,
        "num_layers": 24,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "out_channels": 16,
        "pos_embed_max_size": 192,
    },
    {
        "sample_size": 4,
        "num_layers": 5,
        "num_attention_heads": 3,
        "attention_head_dim": 4,
        "joint_attention_dim": 7,
        "caption_projection_dim": 12,
        "pooled_projection_dim": 8,
        "in_channels": 3,
        "out_channels": 3,
        "pos_embed_max_size": 4,
    },
    pixels=1024,
    batch=4,
    wrap=("JointTransformerBlock",),
    inputs=sd3_inputs,
)
FLUX = Published(
    "Flux dev",
    "FluxTransformer2DModel",
    {"guidance_embeds": True},
    {
        "num_layers": 3,
        "num_single_layers": 4,
        "num_attention_heads": 3,
        "attention_head_dim": 6,
        "axes_dims_rope": (2, 2, 2),
        "in_channels": 5,
        "joint_attention_dim": 7,
        "pooled_projection_dim": 9,
    },
    pixels=1024,
    batch=1,
    wrap=("FluxTransformerBlock", "FluxSingleTransformerBlock"),
    inputs=flux_inputs,
)
DIT = Published(
    "DiT-XL/2",
    "DiTTransformer2DModel",
    {"num_attention_heads": 16, "attention_head_dim": 72, "out_channels": 8, "sample_size": 32},
    {"num_layers": 6, "num_attention_heads": 3, "attention_head_dim": 4, "sample_size": 4},
    pixels=256,
    batch=32,
    # The head's last norm borrows the timestep embedder of block 0, so the embedders are sharded on their own.
    wrap=("BasicTransformerBlock", "CombinedTimestepLabelEmbeddings"),
    inputs=dit_inputs,
)
MODELS = (SDXL, SD3, FLUX, DIT)


def without_zeros(model: nn.Module) -> nn.Module:
    """Fill zero-initialised parameters with small noise, in place: a fresh adaLN-zero model has no gradient inside."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.02)
    return model


def make_call(model: nn.Module, inputs: dict[str, Any]) -> RecordedCall:
    """A call whose output gradient is that of a mean squared error against noise."""
    with torch.no_grad():
        output = output_tensor(model(**inputs))
    return RecordedCall((), inputs, 2 * (output - torch.randn_like(output)) / output.numel())


def small_dit(batch: int, width: int = 256) -> Model:
    """A class-conditional DiT of 12 blocks with learned variance; no parameter at zero, as after some training."""
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=width // 64,
        attention_head_dim=64,
        num_layers=12,
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
    )
    inputs = {
        "hidden_states": torch.randn(batch, 4, 16, 16),
        "timestep": torch.randint(0, 1000, (batch,)),
        "class_labels": torch.randint(0, 1000, (batch,)),
    }
    return without_zeros(model), inputs


def tiny_sd(batch: int) -> Model:
    """The UNet of the default pipeline."""
    folder = ROOT / "recipes" / "assets" / "tiny_sd"
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet").float()
    inputs = {
        "sample": torch.randn(batch, 4, 16, 16),
        "timestep": torch.randint(0, 1000, (batch,)),
        "encoder_hidden_states": torch.randn(batch, 16, unet.config.cross_attention_dim),
    }
    return unet, inputs


def small_sd3(batch: int) -> Model:
    """An SD3 transformer of 8 blocks."""
    model = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=8,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=128,
        caption_projection_dim=256,
        pooled_projection_dim=128,
    )
    inputs = {
        "hidden_states": torch.randn(batch, 4, 16, 16),
        "encoder_hidden_states": torch.randn(batch, 16, 128),
        "pooled_projections": torch.randn(batch, 128),
        "timestep": torch.randint(0, 1000, (batch,)),
    }
    return without_zeros(model), inputs


# Name -> (images in a batch) -> model and inputs; they train on a CPU.
SMALL: dict[str, Callable[[int], Model]] = {
    "UNet of the default pipeline": tiny_sd,
    "DiT, 12 blocks of 256": small_dit,
    "SD3-class, 8 blocks of 256": small_sd3,
}
