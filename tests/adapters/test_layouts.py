"""What the families' units hold, beyond what every family promises."""

from __future__ import annotations

import diffusers
import pytest
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler

from ..settings import BY_ID


pytestmark = pytest.mark.smoke


def units(model: nn.Module) -> dict[str, tuple[str, ...]]:
    layout = GrowthScheduler(model, GrowthConfig(stage_embedding=False)).layout
    return {unit.name: unit.modules for unit in layout.units}


def test_a_resnet_takes_its_attention_and_the_last_one_the_sampler() -> None:
    found = units(BY_ID["sd"].build())
    assert found["down_blocks.0.resnets.0"] == (
        "down_blocks.0.resnets.0",
        "down_blocks.0.attentions.0",
        "down_blocks.0.downsamplers",
    )
    assert found["down_blocks.3.resnets.0"] == ("down_blocks.3.resnets.0",)
    assert found["mid_block"] == ("mid_block",)
    assert found["up_blocks.0.resnets.0"] == ("up_blocks.0.resnets.0",)
    assert found["up_blocks.0.resnets.1"] == ("up_blocks.0.resnets.1", "up_blocks.0.upsamplers")
    assert found["up_blocks.3.resnets.1"] == ("up_blocks.3.resnets.1", "up_blocks.3.attentions.1")


def test_size_and_text_embedders_of_sdxl_are_inputs() -> None:
    model = BY_ID["sdxl"].build()
    inputs = GrowthScheduler(model, GrowthConfig()).layout.inputs
    prefixes = {name.split(".")[0] for name in inputs.parameters}
    assert prefixes == {"conv_in", "time_embedding", "add_embedding"}


@pytest.mark.parametrize("family", ["sd", "sdxl", "unet2d"])
def test_unet_outputs_are_the_last_norm_and_convolution(family: str) -> None:
    outputs = GrowthScheduler(BY_ID[family].build(), GrowthConfig()).layout.outputs
    assert {name.split(".")[0] for name in outputs.parameters} == {"conv_norm_out", "conv_out"}


TRANSFORMER_INPUTS = [
    ("dit", {"pos_embed", "transformer_blocks"}, {"proj_out_1", "proj_out_2"}),
    ("pixart", {"pos_embed", "adaln_single", "caption_projection"}, {"scale_shift_table", "proj_out"}),
    ("sd3", {"pos_embed", "time_text_embed", "context_embedder"}, {"norm_out", "proj_out"}),
    ("flux", {"time_text_embed", "context_embedder", "x_embedder"}, {"norm_out", "proj_out"}),
]


def test_transformer_inputs_and_outputs() -> None:
    for family, inputs, outputs in TRANSFORMER_INPUTS:
        layout = GrowthScheduler(BY_ID[family].build(), GrowthConfig()).layout
        assert {name.split(".")[0] for name in layout.inputs.parameters} == inputs
        assert {name.split(".")[0] for name in layout.outputs.parameters} == outputs


def test_a_unet_without_a_middle_block() -> None:
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type=None,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
    )
    assert "mid_block" not in units(model)
    assert len(units(model)) == 2 + 2 + 4


def test_blocks_that_keep_none_where_a_resnet_has_no_attention() -> None:
    model = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "ResnetDownsampleBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        add_attention=False,
    )
    found = units(model)
    assert found["down_blocks.1.resnets.1"] == ("down_blocks.1.resnets.1",)
    assert [name for name in found if name.startswith("mid")] == ["mid_block"]
