"""Diffusers' UNets: one unit per resnet, together with the attention that follows it."""

from __future__ import annotations

from torch import nn

from autoprog_diffusion.growth.adapter import Adapter, class_names, register_adapter
from autoprog_diffusion.growth.units import Layout, build_layout

from .stage_embedding import build_stage_embedding


OUTPUTS = ("conv_norm_out", "conv_act", "conv_act_out", "conv_out", "out_block", "clf")
STAGES = ("down_blocks", "mid_block", "up_blocks")
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
)
# These classes order the parts of a stage in their own ways: a stage is one unit.
WHOLE_STAGES = ("UNet1DModel", "Kandinsky3UNet", "StableCascadeUNet")
# Lists of the model with one entry per stage: Stable Cascade keeps samplers and mappers outside of its stages.
STAGE_LISTS = {
    "down_blocks": ("down_downscalers", "down_repeat_mappers"),
    "up_blocks": ("up_upscalers", "up_repeat_mappers"),
}


Units = dict[str, list[str]]  # name of a unit -> names of its modules, in forward order


def unet_layout(model: nn.Module) -> Layout:
    """Units of a Diffusers UNet: every resnet and its attention in the down and up blocks, and the whole middle block.

    A block's down- or up-sampler belongs to its last unit. Time, label and size embedders and the first convolution
    are inputs; the last norm and convolution are outputs.

    Raises:
        UnitError: Two units share parameters.
    """
    whole_stages = not set(WHOLE_STAGES).isdisjoint(class_names(model))
    blocks = _units(model, "down_blocks", whole_stages)
    if getattr(model, "mid_block", None) is not None:
        blocks["mid_block"] = ["mid_block"]
    blocks |= _units(model, "up_blocks", whole_stages)
    no_inputs = {*OUTPUTS, *STAGES, *STAGE_LISTS["down_blocks"], *STAGE_LISTS["up_blocks"]}
    inputs = [name for name in dict(model.named_children()) if name not in no_inputs]
    return build_layout(model, list(blocks.items()), inputs)


def _units(model: nn.Module, stages: str, whole_stages: bool) -> Units:
    """Units of the down or the up blocks: name -> names of its modules, in forward order."""
    units: Units = {}
    for index, stage in enumerate(getattr(model, stages)):
        name = f"{stages}.{index}"
        if whole_stages or getattr(stage, "resnets", None) is None:
            others = [f"{other}.{index}" for other in STAGE_LISTS[stages] if hasattr(model, other)]
            units[name] = [name, *others]
        else:
            units |= _resnet_units(stage, name)
    return units


def _resnet_units(stage: nn.Module, name: str) -> Units:
    """Units of the stage called `name`; the last one takes what comes once per stage, such as the sampler."""
    modules = dict(stage.named_modules(prefix=name))
    units: Units = {}
    last: list[str] = []
    for index, _ in enumerate(stage.get_submodule("resnets").children()):
        # Some block types keep None in their lists where a resnet has no attention: it is no module.
        members = [f"{name}.{kind}.{index}" for kind in RESNET_LISTS]
        last = units[members[0]] = [member for member in members if member in modules]
    last += [f"{name}.{child}" for child in dict(stage.named_children()) if child not in RESNET_LISTS]
    return units


register_adapter(Adapter("UNet", (*CLASSES, *WHOLE_STAGES), unet_layout, build_stage_embedding))
