"""Models that are planned for: published ones by name, others by their configuration, all with inputs they take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from autoprog_diffusion.planner.device import NoValues
from autoprog_diffusion.planner.errors import PlannerError
from autoprog_diffusion.planner.inputs import known_classes, make_inputs
from autoprog_diffusion.planner.models import ModelSource, find_model
from autoprog_diffusion.planner.shapes import Shape
from autoprog_diffusion.search.recorded_calls import output_tensor

from ..settings import DENOISERS


# Their inputs need more than a configuration says, or values of theirs decide about shapes (Mochi).
UNPLANNED = {"MochiTransformer3DModel", "OmniGenTransformer2DModel", "PriorTransformer", "StableAudioDiTModel"}
SHAPE = Shape(batch=2, side=8, text=5, frames=2)


def test_a_model_takes_the_inputs_that_are_made_for_it() -> None:
    for row in DENOISERS:
        with NoValues(), torch.no_grad():
            model = row.build()
            if type(model).__name__ not in known_classes():
                assert type(model).__name__ in UNPLANNED
                continue
            output = output_tensor(model(**make_inputs(model, SHAPE), return_dict=False))
        assert output.shape[0] == SHAPE.batch, row.id


def test_a_folder_a_file_and_a_pipeline_name_the_same_model(tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    folder.mkdir()
    config = {"_class_name": "DiTTransformer2DModel", "_diffusers_version": "0.37.0", "num_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    for path in (tmp_path, folder, folder / "config.json"):
        source = find_model(str(path))
        assert source.cls == "DiTTransformer2DModel"
        with torch.device("meta"):
            assert len(source.build().transformer_blocks) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON file"),
        ("[]", "names no class"),
        ('{"_class_name": "AutoencoderKL"}', "AutoencoderKL, which is no denoiser"),
        ('{"_class_name": "NoSuchModel"}', "no model class 'NoSuchModel'"),
        ('{"_class_name": 3}', "names no class"),
    ],
)
def test_a_config_that_is_no_denoiser_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(PlannerError, match=message):
        find_model(str(path))


def test_an_unknown_name_is_refused_with_near_ones(tmp_path: Path) -> None:
    with pytest.raises(PlannerError, match="Did you mean flux-dev"):
        find_model("flux-dv")
    with pytest.raises(PlannerError, match="holds no config.json"):
        find_model(str(tmp_path))


def test_a_configuration_that_its_class_does_not_take_is_refused_by_name() -> None:
    source = ModelSource("mine", "UNet2DConditionModel", {"down_block_types": ["NoBlock"]})
    with pytest.raises(PlannerError, match="mine: UNet2DConditionModel cannot be built"), torch.device("meta"):
        source.build()
