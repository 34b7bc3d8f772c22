"""What somebody else made: pickles and code do not run, and nothing is deleted through a link."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoprog_diffusion.data.tables import DataError
from autoprog_diffusion.files import remove
from autoprog_diffusion.growth.errors import GrowthError
from autoprog_diffusion.tasks.stable_diffusion import load_pipeline
from autoprog_diffusion.training.checkpoints import find_checkpoint
from autoprog_diffusion.training.output import check_output_dir
from autoprog_diffusion.vit.pretrained import load_pretrained

from ..tasks.tiny import build_pipeline


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


PICKLES = {
    "unet": ("unet/diffusion_pytorch_model", ".bin"),
    "vae": ("vae/diffusion_pytorch_model", ".bin"),
    "text encoder": ("text_encoder/model", ".bin"),
}


@pytest.mark.parametrize("part", PICKLES)
def test_a_pipeline_with_a_pickle_in_place_of_weights_does_not_run_it(folder: Path, part: str, tmp_path: Path) -> None:
    name, ending = PICKLES[part]
    (folder / f"{name}.safetensors").unlink()
    pickled = folder / f"{name.replace('text_encoder/model', 'text_encoder/pytorch_model')}{ending}"
    pickled.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(GrowthError):
        load_pipeline(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
def test_a_single_file_that_is_a_pickle_does_not_run(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"model{ending}"
    file.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(GrowthError):
        load_pipeline(str(file))
    assert not (tmp_path / "ran").exists()


def test_code_that_lies_in_a_model_does_not_run(folder: Path, tmp_path: Path) -> None:
    code = f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Other: pass\n"
    for place in ("pipeline.py", "unet/other.py", "other.py"):
        (folder / place).write_text(code)
    index = json.loads((folder / "model_index.json").read_text())
    for change in ({"unet": ["other", "Other"]}, {"_class_name": ["pipeline", "Other"]}):
        (folder / "model_index.json").write_text(json.dumps(index | change))
        with pytest.raises(GrowthError):
            load_pipeline(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_vision_transformer_that_is_a_pickle_does_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "vit"
    folder.mkdir()
    settings = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 16}
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32}
    (folder / "config.json").write_text(json.dumps(settings | small))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(GrowthError):
        load_pretrained(str(folder))
    assert not (tmp_path / "ran").exists()


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    from autoprog_diffusion.data.tables import read_npz

    file = tmp_path / "data.npz"
    array = np.empty(1, dtype=object)
    array[0] = Payload(tmp_path / "ran")
    np.savez(file, x=array, y=array)
    with pytest.raises(DataError):
        read_npz(file)
    assert not (tmp_path / "ran").exists()


def test_a_link_is_deleted_and_not_what_it_leads_to(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "deep").mkdir(parents=True)
    (kept / "file").write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(kept, target_is_directory=True)
    remove(link)
    inside = tmp_path / "folder"
    inside.mkdir()
    (inside / "link").symlink_to(kept, target_is_directory=True)
    remove(inside)
    assert sorted(path.name for path in kept.iterdir()) == ["deep", "file"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]


def test_overwriting_a_run_whose_checkpoints_are_a_link_keeps_what_it_leads_to(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    (scratch / "checkpoint-1").mkdir(parents=True)
    output = tmp_path / "out"
    output.mkdir()
    (output / "checkpoints").symlink_to(scratch, target_is_directory=True)
    check_output_dir(output, resume=False, overwrite=True)
    assert (scratch / "checkpoint-1").is_dir()
    assert not (output / "checkpoints").exists()


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/hostname"])
def test_a_checkpoint_that_names_files_elsewhere_is_none(tmp_path: Path, name: str) -> None:
    root = tmp_path / "checkpoints"
    (root / "checkpoint-3").mkdir(parents=True)
    (root / "outside.bin").write_bytes(b"1234")
    place = root / "checkpoint-3" / name
    size = place.stat().st_size if place.exists() else 0
    marker = {"step": 3, "written": 1, "files": {name: size}}
    (root / "checkpoint-3" / "complete.json").write_text(json.dumps(marker))
    assert find_checkpoint(root, "latest") is None
