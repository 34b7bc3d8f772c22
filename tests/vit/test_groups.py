"""Block groups as models declare them; the grid of depths and resolutions of the paper; what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from autoprog_diffusion.growth import ConfigError, OrderError, UnitError
from autoprog_diffusion.vit.autoprog_one.config import ViTGrowthConfig
from autoprog_diffusion.vit.autoprog_one.groups import (
    depth_grid,
    find_groups,
    make_divisible,
    resolution_grid,
    split_depths,
)
from autoprog_diffusion.vit.autoprog_one.scheduler import ViTGrowth

from . import growing


@growing.models
def test_every_block_is_in_one_group_in_forward_order(name: str) -> None:
    model = growing.BUILDERS[name]()
    groups = find_groups(model)
    found = [block for group in groups for block in group.blocks]
    if name == "volo":
        assert [group.blocks for group in groups] == [
            ("network.0.0", "network.0.1"),
            ("network.2.0", "network.2.1", "network.3.0", "network.3.1", "network.3.2", "network.4.0"),
        ]
    else:
        assert [len(group) for group in groups] == [6]
    ran: list[str] = []
    for block in found:
        model.get_submodule(block).register_forward_hook(lambda *_, block=block: ran.append(block))
    growing.output(model.eval(), growing.batch(0, name)[0])
    assert ran == found
    assert {len(block) for group in groups for block in group.tensors[:1]}.isdisjoint({0})


VOLO_SPLITS = [(18, [(2, 7), (4, 8), (4, 11), (4, 14)]), (24, None), (36, None), (48, None)]


def test_volo_splits_its_depth_as_the_paper_does() -> None:
    """VOLO-D1's splits are the released code's; D2 to D5 must end in their own stages."""
    for full, depths in VOLO_SPLITS:
        sizes = {18: [4, 14], 24: [6, 18], 36: [8, 28], 48: [12, 36]}[full]
        grid = depth_grid(ViTGrowthConfig(), sizes)
        found = split_depths(grid, sizes)
        assert found[-1] == tuple(sizes)
        assert depths is None or found == depths


def test_no_group_ever_shrinks() -> None:
    for first, second in itertools.product(range(1, 7), range(1, 15)):
        ladder = list(range(2, first + second + 1))
        found = split_depths(ladder, [first, second])
        assert [sum(depths) for depths in found] == ladder
        assert found[-1] == (first, second)
        assert all(0 < a <= first and 0 < b <= second for a, b in found)
        assert all(a <= c and b <= d for (a, b), (c, d) in itertools.pairwise(found))


def test_make_divisible_is_timms() -> None:
    layers = pytest.importorskip("timm.layers")
    for value, divisor in itertools.product([0.5, 1.0, 2.07, 2.76, 3.45, 4.14, 17.0, 112.0, 149.4, 186.7], [2, 8, 32]):
        assert make_divisible(value, divisor) == layers.make_divisible(value, divisor)


def test_the_grid_is_the_papers() -> None:
    config = ViTGrowthConfig()
    assert depth_grid(config, [4, 14]) == [9, 12, 15, 18]
    assert depth_grid(config, [12]) == [6, 8, 10, 12]
    assert resolution_grid(config, 224, 32) == [128, 160, 192, 224]
    assert depth_grid(ViTGrowthConfig(num_stages=1), [12]) == [12]
    assert resolution_grid(ViTGrowthConfig(num_stages=1), 224, 32) == [224]


def test_blocks_of_different_shape_are_refused() -> None:
    model = growing.hf_vit()
    model.vit.layers[3].mlp.fc1 = nn.Linear(16, 48)
    with pytest.raises(UnitError, match=r"'vit.layers.3' differs from 'vit.layers.0' in 'mlp.fc1.bias': \(48,\)"):
        ViTGrowth(model, ViTGrowthConfig(search="fixed"))


def test_a_model_without_a_list_of_blocks_is_refused_and_can_be_told() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(UnitError, match="Sequential declares no list of blocks"):
        find_groups(model)
    assert find_groups(model, ["*"])[0].blocks == ("0", "1")


def test_fewer_blocks_than_stages_share_depths() -> None:
    assert depth_grid(ViTGrowthConfig(), (3,)) == [2, 2, 2, 3]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((8, 10, 16), "resolution 10 is not a multiple of 4.*use 8 or 12"),
        ((8, 12, 12), "must end in the model's own image size, 16"),
    ],
)
def test_resolutions_that_do_not_fit_the_model_are_refused(sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ViTGrowth(growing.hf_vit(), ViTGrowthConfig(num_stages=3, resolutions=sizes))


SETTINGS_OUT = [
    ({"search": "grid"}, "search='grid' is not allowed: use one of"),
    ({"operator": "net2net"}, "operator='net2net'"),
    ({"num_stages": 0}, "num_stages=0"),
    ({"min_depth": 0}, "min_depth=0"),
    ({"ema_decay": 1.0}, "ema_decay=1.0"),
    ({"search_steps": 1.5}, "search_steps=1.5"),
    ({"search_steps": 0}, "search_steps=0"),
    ({"resolutions": (16, 8), "num_stages": 2}, "decrease"),
    ({"resolutions": (16,), "num_stages": 2}, "one per stage"),
    ({"resolutions": 16}, "give a list"),
    ({"resolutions": (0.5, 1.0), "num_stages": 2}, "whole numbers of pixels"),
    ({"boundaries": (5,)}, "has 1 values for num_stages=4"),
    ({"boundaries": (5, 5), "num_stages": 3}, "do not increase"),
    ({"boundaries": (5, 0.5), "num_stages": 3}, "all steps"),
]


def test_settings_out_of_range_are_refused() -> None:
    for values, message in SETTINGS_OUT:
        with pytest.raises(ConfigError, match=message):
            ViTGrowthConfig(**values)


def test_a_configuration_survives_json() -> None:
    config = ViTGrowthConfig(num_stages=2, resolutions=(8, 16), boundaries=(0.25,), search="random")
    assert ViTGrowthConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match=r"no field\(s\) \['depths'\]"):
        ViTGrowthConfig.from_dict({"depths": 3})


def test_a_wrapped_model_is_refused() -> None:
    with pytest.raises(OrderError, match="DataParallel"):
        ViTGrowth(torch.nn.DataParallel(growing.hf_vit()), ViTGrowthConfig())
