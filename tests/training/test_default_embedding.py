"""A stage embedding by default is left out of a model that has no place for one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from autoprog_diffusion.growth import GrowthConfig, GrowthScheduler, UnitError
from autoprog_diffusion.training.default_embedding import default_embedding, has_place

from ..settings import BY_ID


@pytest.fixture
def build() -> Callable[[str], nn.Module]:
    return lambda name: BY_ID[name].build()


@pytest.mark.parametrize(("name", "place"), [("dit", True), ("flux", True), ("flux2", False), ("chroma", False)])
def test_it_is_left_out_where_there_is_no_place(build: Callable[[str], nn.Module], name: str, place: bool) -> None:
    model = build(name)
    assert has_place(model) == place
    config = GrowthConfig(stage_embedding=True, stage_dropout=0.1)
    found = default_embedding(config, set(), model)
    assert (found is config) == place
    if not place:
        assert (found.stage_embedding, found.stage_dropout) == (None, 0.0)
        assert GrowthScheduler(model, found).stage_embedding is None


@pytest.mark.parametrize("flag", ["stage_embedding", "stage_dropout", "stage_embedding_init"])
def test_what_the_command_line_asks_for_is_refused(build: Callable[[str], nn.Module], flag: str) -> None:
    model = build("flux2")
    config = default_embedding(GrowthConfig(stage_embedding=True), {flag}, model)
    assert config.stage_embedding is True
    with pytest.raises(UnitError, match="has no bias, so a stage embedding could not be folded"):
        GrowthScheduler(model, config)


def test_a_frozen_embedder_is_no_place(build: Callable[[str], nn.Module]) -> None:
    model = build("dit")
    model.requires_grad_(False)
    assert default_embedding(GrowthConfig(stage_embedding=True), set(), model).stage_embedding is None
    off = GrowthConfig(stage_embedding=False)
    assert default_embedding(off, set(), model) is off
