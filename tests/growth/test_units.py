"""Models cut into units: by adapters, by patterns, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth import Adapter, UnitError, find_adapter, register_adapter, supported_classes
from autoprog_diffusion.growth.units import build_layout, front, layout_from_patterns, set_trainable, trainable_names

from ..settings import DENOISERS, FAMILIES, Classifier


class Tower(nn.Module):
    """A stem, two lists of blocks and a head: the shape of any network the library does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(3))
        self.late = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x) * self.scale
        for layer in [*self.layers, *self.late]:
            x = x + layer(x)
        return self.head(x)


PLAIN = GrowthConfig(num_stages=2, stage_embedding=False, order="interleaved", direction="unfreeze")


def test_patterns_cut_any_module() -> None:
    layout = layout_from_patterns(Tower(), ["layers.*", "late.*"])
    assert [unit.name for unit in layout.blocks] == ["layers.0", "layers.1", "layers.2", "late.0", "late.1"]
    assert layout.inputs.parameters == ("stem.weight", "stem.bias")
    assert set(layout.outputs.parameters) == {"scale", "head.weight", "head.bias"}
    assert layout.blocks[0].parameters == ("layers.0.0.weight", "layers.0.0.bias")
    names = [name for unit in layout.units for name in unit.parameters]
    assert sorted(names) == sorted(name for name, _ in Tower().named_parameters())


def test_a_star_stops_at_a_dot_and_order_follows_the_patterns() -> None:
    layout = layout_from_patterns(Tower(), ["late.[01]", "layers.*"])
    assert [unit.name for unit in layout.blocks] == ["late.0", "late.1", "layers.0", "layers.1", "layers.2"]


@pytest.mark.parametrize("order", ["interleaved", "suffix", "prefix"])
def test_a_generic_module_grows(order: Any) -> None:
    model = Tower()
    config = GrowthConfig(num_stages=3, order=order, stage_embedding=False, direction="unfreeze")
    growth = GrowthScheduler(model, config, blocks=["layers.*", "late.*"])
    optimizer = torch.optim.AdamW(growth.parameters(), lr=0.1)
    growth.prepare(model, num_training_steps=3, optimizer=optimizer)
    for step in range(3):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trains = {name for name, p in model.named_parameters() if p.requires_grad}
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        assert {name for name, p in model.named_parameters() if not torch.equal(p, before[name])} == trains
        assert growth.step() == (step < 2)
        optimizer.zero_grad()
    assert growth.trainable_fraction == 1.0


BAD_PATTERNS = [
    (["blocks.*"], r"'blocks.\*' matches no module.*layers\.\*"),
    (["layers.*", "late.7"], "'late.7' matches no module"),
    (["layers.*", "layers.1"], r"'layers.1' names \['layers.1'\] again"),
    (["layers.*", "layers.1.0"], r"\['layers.1.0'\] lie inside block 'layers.1'"),
    (["layers.1.0", "layers.*"], r"\['layers.1.0'\] lie inside block 'layers.1'"),
    (["layers", "layers.0"], r"\['layers.0'\] lie inside block 'layers'"),
    (["layers.*.*"], r"'layers.0.1' holds no parameter"),
    ("layers.*", r"blocks='layers.\*' is one string.*blocks=\['layers.\*'\]"),
    ([], "blocks"),
]


def test_bad_patterns_are_named() -> None:
    for blocks, named in BAD_PATTERNS:
        with pytest.raises(UnitError, match=named):
            GrowthScheduler(Tower(), PLAIN, blocks=blocks)


def test_parameters_tied_between_two_blocks_are_named() -> None:
    model = Tower()
    model.late[1].weight = model.layers[0][0].weight
    with pytest.raises(UnitError, match=r"'layers.0.0.weight' is in two blocks, 'layers.0' and 'late.1'"):
        GrowthScheduler(model, PLAIN, blocks=["layers.*", "late.*"])


def test_parameters_tied_inside_a_block_or_to_the_head_are_one() -> None:
    model = Tower()
    model.late[1].bias = model.late[0].bias
    layout = layout_from_patterns(model, ["layers.*", "late"])
    assert sorted(layout.blocks[-1].parameters) == ["late.0.bias", "late.0.weight", "late.1.weight"]
    model = Tower()
    model.head.weight = nn.Parameter(torch.zeros(4, 4))
    model.late[1].weight = model.head.weight
    layout = layout_from_patterns(model, ["layers.*", "late.*"])
    assert layout.blocks[-1].parameters == ("late.1.weight", "late.1.bias")
    assert "head.weight" not in layout.outputs.parameters


def test_an_unknown_class_is_told_what_is_known_and_what_to_write() -> None:
    with pytest.raises(UnitError) as caught:
        GrowthScheduler(Tower(), PLAIN)
    message = str(caught.value)
    assert message.startswith("Tower is not a known model class")
    assert all(name in message for name in supported_classes())
    assert "blocks=['layers.*', 'late.*']" in message
    # The hint is right as it stands.
    assert len(GrowthScheduler(Tower(), PLAIN, blocks=["layers.*", "late.*"]).layout.blocks) == 5
    with pytest.raises(UnitError, match=r'blocks=\["layers.\*"\]'):
        GrowthScheduler(nn.Linear(2, 2), PLAIN)


def test_no_blocks_is_an_error() -> None:
    with pytest.raises(UnitError, match="Tower has no growable block"):
        build_layout(Tower(), [], ["stem"])


def test_no_place_for_a_stage_embedding_names_the_fix() -> None:
    with pytest.raises(UnitError, match=r"Tower has no timestep embedder.*GrowthConfig\(stage_embedding=False\)"):
        GrowthScheduler(
            Tower(),
            GrowthConfig(num_stages=2, stage_embedding=True),
            blocks=["layers.*"],
        )


def test_every_row_of_the_table_is_found_and_subclasses_too() -> None:
    denoisers = {find_adapter(family.build()).name for family in DENOISERS}
    classifiers = {find_adapter(family.build()).name for family in FAMILIES if isinstance(family, Classifier)}
    assert denoisers == {"UNet", "transformer"}
    assert classifiers - {"timm"} == {"transformers ViT"}
    model = FAMILIES[0].build()
    model.__class__ = type("MyUNet", (type(model),), {})
    assert find_adapter(model).name == "UNet"


def test_patterns_win_over_a_known_class() -> None:
    model = FAMILIES[0].build()
    growth = GrowthScheduler(
        model,
        GrowthConfig(order="interleaved", direction="unfreeze"),
        blocks=["down_blocks.*", "mid_block", "up_blocks.*"],
    )
    assert len(growth.layout.blocks) == 9
    assert len(growth.stage_embedding.points) == 1


def test_a_class_is_registered_once() -> None:
    known = find_adapter(FAMILIES[0].build())
    with pytest.raises(UnitError, match=r"\['UNet2DModel'\] already have an adapter"):
        register_adapter(Adapter("twin", ("UNet2DModel",), known.layout, known.stage_embedding))


def test_the_front_is_what_runs_before_the_first_trained_block() -> None:
    layout = layout_from_patterns(Tower(), ["layers.*", "late.*"])
    assert front(layout, (0, 4)) == ()
    assert front(layout, (2, 4)) == layout.blocks[:2]
    assert trainable_names(layout, (4,)) == {"scale", "head.weight", "head.bias", "late.1.weight", "late.1.bias"}
    assert {"stem.weight", "stem.bias"} < trainable_names(layout, (0,))


def test_freezing_drops_the_gradient() -> None:
    model = Tower()
    model(torch.randn(2, 4)).sum().backward()
    set_trainable(model, {"head.weight"})
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["head.weight"]
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["head.weight"]
