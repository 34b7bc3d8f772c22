"""Diffusers' UNets: one unit per resnet, together with the attention that follows it."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import nn

from autoprog_diffusion.growth.adapter import Adapter, class_names, register_adapter
from autoprog_diffusion.growth.units import Layout, build_layout

from .checkpointing import run_blocks_by
from .stage_embedding import build_stage_embedding


OUTPUTS = ("conv_norm_out", "conv_act", "conv_act_out", "conv_out", "out_block", "clf")
CONTROLS = ("controlnet_down_blocks", "controlnet_mid_block")
# Lists of a stage with one entry per resnet, in the order in which their entries run.
RESNET_LISTS = ("resnets", "temp_convs", "attentions", "temp_attentions", "motion_modules")
CLASSES = (
    "UNet2DConditionModel",
    "UNet2DModel",
    "UNet3DConditionModel",
    "UNetMotionModel",
    "UNetSpatioTemporalConditionModel",
    "I2VGenXLUNet",
    "DreamLiteUNetModel",
    # The encoder of a UNet, with a convolution behind every stage for the UNet that it controls.
    "ControlNetModel",
    "ControlNetUnionModel",
)
# These classes order the parts of a stage in their own ways: a stage is one unit.
WHOLE_STAGES = ("UNet1DModel", "Kandinsky3UNet", "StableCascadeUNet")
# Lists of the model with one entry per stage: Stable Cascade keeps samplers and mappers outside of its stages.
STAGE_LISTS = {
    "down_blocks": ("down_downscalers", "down_repeat_mappers"),
    "up_blocks": ("up_upscalers", "up_repeat_mappers"),
}
NO_INPUTS = {"mid_block", *OUTPUTS, *CONTROLS, *STAGE_LISTS, *chain(*STAGE_LISTS.values())}


def unet_layout(model: nn.Module) -> Layout:
    """Units of a Diffusers UNet: every resnet and its attention in the down and up blocks, and the whole middle block.

    A block's down- or up-sampler belongs to its last unit. Time, label and size embedders and the first convolution
    are inputs; the last norm and convolution are outputs.

    Raises:
        UnitError: Two units share parameters.
    """
    blocks = _blocks(model, "down_blocks")
    if getattr(model, "mid_block", None) is not None:
        blocks.append(["mid_block"])
    blocks += _blocks(model, "up_blocks")
    inputs = [name for name in dict(model.named_children()) if name not in NO_INPUTS]
    return build_layout(model, blocks, inputs)


def _blocks(model: nn.Module, stages: str) -> list[list[str]]:
    """Units of the down or the up blocks, in forward order: the names of the modules of each."""
    whole = any(name in WHOLE_STAGES for name in class_names(model))
    lists = [stages, *STAGE_LISTS[stages]]
    blocks = []
    for index, stage in enumerate(getattr(model, stages, ())):
        if whole or getattr(stage, "resnets", None) is None:
            blocks.append([f"{kind}.{index}" for kind in lists if hasattr(model, kind)])
        else:
            blocks += _resnet_blocks(stage, f"{stages}.{index}")
    return blocks


def _resnet_blocks(stage: Any, name: str) -> list[list[str]]:
    """Units of the stage called `name`; the last one takes what comes once per stage, such as the sampler."""
    modules = dict(stage.named_modules(prefix=name))
    blocks = []
    for index in range(len(stage.resnets)):
        members = [f"{name}.{kind}.{index}" for kind in RESNET_LISTS]
        # Some block types keep None in their lists where a resnet has no attention: it is no module.
        blocks.append([member for member in members if member in modules])
    for child, _ in stage.named_children():
        if child not in RESNET_LISTS:
            blocks[-1].append(f"{name}.{child}")
    return blocks


register_adapter(
    Adapter(
        name="UNet",
        classes=(*CLASSES, *WHOLE_STAGES),
        layout=unet_layout,
        stage_embedding=build_stage_embedding,
        checkpointing=run_blocks_by,
    )
)
