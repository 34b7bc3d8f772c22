"""UNet2DConditionModel (SD 1.x, 2.x, SDXL) and UNet2DModel: one unit per resnet with its attention."""

from __future__ import annotations

from torch import nn

from autoprog_diffusion.growth.adapter import Adapter, register_adapter
from autoprog_diffusion.growth.units import Layout, build_layout

from .stage_embedding import build_stage_embedding


OUTPUTS = ("conv_norm_out", "conv_act", "conv_out")
STAGES = ("down_blocks", "mid_block", "up_blocks")


def unet_layout(model: nn.Module) -> Layout:
    """Units of a Diffusers UNet: every resnet and its attention in the down and up blocks, and the whole middle block.

    A block's down- or up-sampler belongs to its last unit. Time, label and size embedders and the first convolution
    are inputs; the last norm and convolution are outputs.

    Raises:
        UnitError: Two units share parameters.
    """
    blocks = _sampled_blocks("down_blocks", model.down_blocks)  # type: ignore[arg-type]
    if getattr(model, "mid_block", None) is not None:
        blocks.append(("mid_block", ["mid_block"]))
    blocks += _sampled_blocks("up_blocks", model.up_blocks)  # type: ignore[arg-type]
    inputs = [name for name, _ in model.named_children() if name not in (*OUTPUTS, *STAGES)]
    return build_layout(model, blocks, inputs)


def _sampled_blocks(prefix: str, stages: nn.ModuleList) -> list[tuple[str, list[str]]]:
    units: list[tuple[str, list[str]]] = []
    for index, stage in enumerate(stages):
        name = f"{prefix}.{index}"
        lists = [child for child in ("resnets", "attentions") if getattr(stage, child, None) is not None]
        if "resnets" not in lists:
            units.append((name, [name]))
            continue
        for position in range(len(stage.resnets)):  # type: ignore[arg-type]
            members = [f"{name}.{kind}.{position}" for kind in lists if position < len(getattr(stage, kind))]
            units.append((f"{name}.resnets.{position}", [m for m in members if _holds(stage, m[len(name) + 1 :])]))
        units[-1][1].extend(f"{name}.{child}" for child, _ in stage.named_children() if child not in lists)
    return units


def _holds(stage: nn.Module, name: str) -> bool:
    """Some block types keep `None` in their lists where a resnet has no attention."""
    return any(found == name for found, _ in stage.named_modules())


register_adapter(Adapter("UNet", ("UNet2DConditionModel", "UNet2DModel"), unet_layout, build_stage_embedding))
