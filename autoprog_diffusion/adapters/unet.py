"""Diffusers' UNets: one unit per resnet with what runs at its side."""

from __future__ import annotations

from torch import nn

from autoprog_diffusion.growth.adapter import Adapter, by_class, register_adapter
from autoprog_diffusion.growth.units import Layout, build_layout

from .stage_embedding import build_stage_embedding


OUTPUTS = ("conv_norm_out", "conv_act", "conv_act_out", "conv_out", "out_block", "clf")
STAGES = ("down_blocks", "mid_block", "up_blocks")
# What a stage of a UNet repeats once per resnet, in the order it runs.
SIDES = ("resnets", "temp_convs", "attentions", "temp_attentions", "motion_modules")
CLASSES = (
    "UNet2DConditionModel",
    "UNet2DModel",
    "UNet3DConditionModel",
    "UNetMotionModel",
    "UNetSpatioTemporalConditionModel",
    "I2VGenXLUNet",
    "DreamLiteUNetModel",
)
# These order the parts of a stage in their own ways: a stage is one unit.
WHOLE_STAGES = ("UNet1DModel", "Kandinsky3UNet", "StableCascadeUNet")
# Stable Cascade keeps a stage's parts in lists of their own, beside its blocks.
BESIDE = {
    "down_blocks": ("down_downscalers", "down_repeat_mappers"),
    "up_blocks": ("up_upscalers", "up_repeat_mappers"),
}


def unet_layout(model: nn.Module) -> Layout:
    """Units of a Diffusers UNet: every resnet and its attention in the down and up blocks, and the whole middle block.

    A block's down- or up-sampler belongs to its last unit. Time, label and size embedders and the first convolution
    are inputs; the last norm and convolution are outputs.

    Raises:
        UnitError: Two units share parameters.
    """
    whole = bool(by_class(model, dict.fromkeys(WHOLE_STAGES, True)))
    blocks = _sampled_blocks(model, "down_blocks", whole)
    if getattr(model, "mid_block", None) is not None:
        blocks.append(("mid_block", ["mid_block"]))
    blocks += _sampled_blocks(model, "up_blocks", whole)
    beside = [name for names in BESIDE.values() for name in names]
    inputs = [name for name, _ in model.named_children() if name not in (*OUTPUTS, *STAGES, *beside)]
    return build_layout(model, blocks, inputs)


def _sampled_blocks(model: nn.Module, prefix: str, whole: bool) -> list[tuple[str, list[str]]]:
    units: list[tuple[str, list[str]]] = []
    for index, stage in enumerate(getattr(model, prefix)):
        name = f"{prefix}.{index}"
        lists = [child for child in SIDES if getattr(stage, child, None) is not None]
        if whole or "resnets" not in lists:
            beside = [f"{other}.{index}" for other in BESIDE[prefix] if hasattr(model, other)]
            units.append((name, [name, *beside]))
            continue
        for position in range(len(stage.resnets)):  # type: ignore[arg-type]
            members = [f"{name}.{kind}.{position}" for kind in lists if position < len(getattr(stage, kind))]
            units.append((f"{name}.resnets.{position}", [m for m in members if _holds(stage, m[len(name) + 1 :])]))
        units[-1][1].extend(f"{name}.{child}" for child, _ in stage.named_children() if child not in lists)
    return units


def _holds(stage: nn.Module, name: str) -> bool:
    """Some block types keep `None` in their lists where a resnet has no attention."""
    return any(found == name for found, _ in stage.named_modules())


register_adapter(Adapter("UNet", (*CLASSES, *WHOLE_STAGES), unet_layout, build_stage_embedding))
