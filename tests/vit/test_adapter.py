"""Units of vision transformers beyond the rows of `tests/families`, which pass every contract."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from autoprog_diffusion import GrowthConfig, GrowthScheduler
from autoprog_diffusion.growth import Layout, UnitError, find_adapter

from ..settings import BY_ID


pytestmark = pytest.mark.smoke


def layout_of(model: nn.Module) -> Layout:
    return find_adapter(model).layout(model)


def timm_layout(name: str) -> Layout:
    timm = pytest.importorskip("timm", reason="needs timm, the extra vit")
    with torch.device("meta"):
        return layout_of(timm.create_model(name))


def test_the_rows_of_timm_are_in_the_table() -> None:
    pytest.importorskip("timm", reason="needs timm, the extra vit")
    assert {"timm_deit", "timm_deit3", "timm_distilled", "timm_eva", "timm_volo"} <= BY_ID.keys()


BLOCKS_ARE_THOSE = [
    ("deit_base_patch16_224", 12),
    ("deit3_large_patch16_224", 24),
    ("vit_small_patch16_224", 12),
    ("eva02_base_patch14_448", 12),
    ("volo_d1_224", 4 + 1 + 14 + 2),  # outlookers, the layer between, transformers, class attention
    ("swin_tiny_patch4_window7_224", 12),
    ("convnext_tiny", 18),
]


def test_blocks_are_those_timm_declares() -> None:
    for name, count in BLOCKS_ARE_THOSE:
        layout = timm_layout(name)
        assert len(layout.blocks) == count
        assert all(unit.parameters for unit in layout.units)
        assert not [
            part for part in layout.inputs.parameters if part.startswith(("blocks", "network", "layers", "head"))
        ]
        assert any(part.startswith(("head", "norm", "fc_norm")) for part in layout.outputs.parameters)


def test_what_stands_between_two_stages_is_no_output() -> None:
    assert "network.1" in [unit.name for unit in timm_layout("volo_d1_224").blocks]
    swin = timm_layout("swin_tiny_patch4_window7_224")
    assert ("layers.1.downsample", "layers.1.blocks.0") in [unit.modules for unit in swin.blocks]


@pytest.mark.parametrize("kind", ["ViT", "DeiT"])
@pytest.mark.parametrize("head", ["Model", "ForImageClassification", "ForMaskedImageModeling"])
def test_every_class_of_transformers_has_its_layers_as_blocks(kind: str, head: str) -> None:
    config = getattr(transformers, f"{kind}Config")(num_hidden_layers=3)
    with torch.device("meta"):
        model = getattr(transformers, kind + head)(config)
    layout = layout_of(model)
    prefix = "" if head == "Model" else f"{kind.lower()}."
    assert [unit.name for unit in layout.blocks] == [f"{prefix}layers.{index}" for index in range(3)]
    assert all("embeddings" in name for name in layout.inputs.parameters)
    assert not [name for name in layout.outputs.parameters if "embeddings" in name]


@pytest.mark.parametrize("settings", [{"stage_embedding": True}, {"stage_dropout": 0.1}])
def test_a_stage_embedding_is_refused(settings: dict[str, Any]) -> None:
    model = BY_ID["hf_vit"].build()
    with pytest.raises(UnitError, match=r"ViTForImageClassification has no timestep.*GrowthConfig\(stage_embedding=F"):
        GrowthScheduler(model, GrowthConfig(**settings))
    assert GrowthScheduler(model, GrowthConfig()).stage_embedding is None


class Declaring(nn.Module):
    """A model that says in timm's way what it is made of."""

    pretrained_cfg: dict[str, Any] = {}

    def __init__(self, pattern: Any) -> None:
        super().__init__()
        self.stem, self.blocks, self.norm = nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)] * 1), nn.LayerNorm(2)
        self._pattern = pattern

    def group_matcher(self) -> dict[str, Any]:
        return {"stem": r"^stem", "blocks": self._pattern}


def test_a_declaration_is_one_pattern_or_many() -> None:
    for pattern in (r"^blocks\.(\d+)", [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]):
        layout = layout_of(Declaring(pattern))
        assert [unit.name for unit in layout.blocks] == ["blocks.0"]
        assert layout.outputs.parameters == ("norm.weight", "norm.bias")


def test_declarations_that_name_no_module_are_refused() -> None:
    with pytest.raises(UnitError, match=r"Declaring.group_matcher names \['blocks.0.w'\], which are no modules"):
        layout_of(Declaring(r"^blocks\.(\d+)\.w"))
    with pytest.raises(UnitError, match="Declaring has no growable block"):
        layout_of(Declaring(r"^layers\.(\d+)"))


def test_a_vit_without_declared_layers_is_refused() -> None:
    model = BY_ID["hf_vit"].build()
    model._no_split_modules = []
    with pytest.raises(UnitError, match="ViTForImageClassification has no list of the layers it declares"):
        layout_of(model)


def test_registering_imports_neither_library() -> None:
    code = "import sys, autoprog_diffusion.vit; print({'timm', 'transformers', 'accelerate'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)
    assert done.stdout.strip() == "set()", done.stderr
