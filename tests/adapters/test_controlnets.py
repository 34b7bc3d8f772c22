"""ControlNets are cut like the models that they are made from; what they add behind each block always trains."""

from __future__ import annotations

import diffusers
import pytest
import torch
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler

from ..settings import BY_ID


def controlnet() -> nn.Module:
    return diffusers.ControlNetModel(
        block_out_channels=(8, 16),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
        cross_attention_dim=16,
        conditioning_embedding_out_channels=(8, 8),
    )


def flux() -> nn.Module:
    model = BY_ID["flux"].build()
    config = {name: model.config[name] for name in ("attention_head_dim", "num_attention_heads")}
    return diffusers.FluxControlNetModel.from_transformer(model, num_layers=2, num_single_layers=1, **config)


def sd3() -> nn.Module:
    return diffusers.SD3ControlNetModel.from_transformer(
        BY_ID["sd3"].build(), num_layers=2, num_extra_conditioning_channels=0
    )


def roots(names: tuple[str, ...]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_a_controlnet_of_a_unet_has_its_resnets_as_blocks() -> None:
    layout = GrowthScheduler(controlnet(), GrowthConfig()).layout
    assert [unit.name for unit in layout.blocks] == [
        "down_blocks.0.resnets.0",
        "down_blocks.0.resnets.1",
        "down_blocks.1.resnets.0",
        "down_blocks.1.resnets.1",
        "mid_block",
    ]
    assert roots(layout.inputs.parameters) == {"conv_in", "time_embedding", "controlnet_cond_embedding"}
    assert roots(layout.outputs.parameters) == {"controlnet_down_blocks", "controlnet_mid_block"}


@pytest.mark.parametrize(
    ("build", "outputs"),
    [(flux, {"controlnet_blocks", "controlnet_single_blocks"}), (sd3, {"controlnet_blocks"})],
)
@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed.*:FutureWarning")
def test_a_controlnet_of_a_transformer_has_its_layers_as_outputs(build, outputs: set[str]) -> None:
    layout = GrowthScheduler(build(), GrowthConfig()).layout
    assert roots(layout.outputs.parameters) == outputs
    assert roots(layout.inputs.parameters).isdisjoint(outputs)


def test_behind_frozen_blocks_the_convolutions_train_on() -> None:
    torch.manual_seed(0)
    model = controlnet()
    growth = GrowthScheduler(model, GrowthConfig(num_stages=2))
    optimizer = torch.optim.AdamW(growth.parameters(), lr=1e-2)
    growth.prepare(model, num_training_steps=2, optimizer=optimizer)
    for _ in range(2):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        down, middle = model(
            torch.randn(2, 4, 8, 8),
            torch.tensor([3, 5]),
            encoder_hidden_states=torch.randn(2, 3, 16),
            controlnet_cond=torch.randn(2, 3, 16, 16),
            return_dict=False,
        )
        sum((one - 1).square().mean() for one in (*down, middle)).backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        growth.step()
    # The last stage.
    assert {name for name in before if name.startswith("controlnet_") and "cond" not in name} <= moved
    assert not [name for name in moved if name.startswith(("conv_in", "down_blocks.0.resnets.0"))]
    growth.fold(model)
