"""Units partition a model, are in forward order, and open in nested stages."""

from __future__ import annotations

import pytest
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth import Layout

from ..settings import Family
from .common import (
    growable,
    ordered,
    outputs,
    start,
)


pytestmark = pytest.mark.smoke


def block_names(layout: Layout, model: nn.Module) -> set[str]:
    """Parameters inside the modules that the layout calls its blocks, found by the text of their names."""
    prefixes = tuple(module + "." for unit in layout.blocks for module in unit.modules)
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


@ordered
def test_units_partition_the_parameters_and_open_in_nested_stages(family: Family, order: str) -> None:
    units_partition_the_parameters_in_forward_order(family)
    stages_nest_and_end_with_the_whole_model(family, order)


def units_partition_the_parameters_in_forward_order(family: Family) -> None:
    model = family.build().eval()
    growth = GrowthScheduler(model, GrowthConfig())
    layout = growth.layout
    names = [name for unit in layout.units for name in unit.parameters]
    assert len(names) == len(set(names))
    assert set(names) == growable(family)
    assert all(unit.parameters for unit in layout.units)
    grown = {name for unit in layout.blocks for name in unit.parameters}
    # Only the timestep and label embedder that DiT keeps in block 0 is taken out of a block.
    taken = {n for n in block_names(layout, model) if n.startswith("transformer_blocks.0.norm1.emb.")}
    assert grown == block_names(layout, model) - taken
    assert bool(taken) == (family.id == "dit")
    # In forward order, and the stage embedding enters at every timestep embedder.
    assert tuple(unit.name for unit in layout.blocks) == family.blocks
    ran: list[str] = []
    for unit in layout.blocks:
        first = model.get_submodule(unit.modules[0])
        first.register_forward_hook(lambda module, args, output, name=unit.name: ran.append(name))
    outputs(family, model)
    assert tuple(ran) == family.blocks
    points = growth.stage_embedding.points if growth.stage_embedding is not None else ()
    assert len(points) == family.points
    assert not [name for name in points if "guidance" in name or "add_embedding" in name]


def stages_nest_and_end_with_the_whole_model(family: Family, order: str) -> None:
    model, growth, _ = start(family, num_stages=4, order=order)
    open_now: list[set[str]] = []
    for _ in range(6):
        open_now.append({name for name, parameter in model.named_parameters() if parameter.requires_grad})
        growth.step()
    assert len({len(names) for names in open_now}) == 4
    assert all(early <= late for early, late in zip(open_now, open_now[1:]))
    assert open_now[-1] == growable(family)
