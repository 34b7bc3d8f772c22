"""A resume loads what was written: a file of a checkpoint that has changed since is named, and nothing is loaded."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from autoprog_diffusion.growth.errors import StateError
from autoprog_diffusion.training import manifest
from autoprog_diffusion.training.checkpoints import find_checkpoint, save_checkpoint
from autoprog_diffusion.training.manifest import MARKER, check_files, checksums
from autoprog_diffusion.training.metrics import Metrics


@pytest.fixture
def folder(accelerator: Accelerator, tmp_path: Path) -> Path:
    """A checkpoint of a model, an optimizer and a registered object."""
    model = torch.nn.Linear(3, 2)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.register_for_checkpointing(Metrics())
    save_checkpoint(accelerator, tmp_path, 3, None)
    return tmp_path / "checkpoint-3"


def flip(path: Path, place: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


def test_resume_takes_an_intact_checkpoint(accelerator: Accelerator, folder: Path) -> None:
    check_files(folder, accelerator)
    assert find_checkpoint(folder.parent, "latest") == folder


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl"]
)
def test_resume_names_a_file_with_a_flipped_bit(accelerator: Accelerator, folder: Path, name: str) -> None:
    size = (folder / name).stat().st_size
    for place in (0, size // 2, size - 1):
        flip(folder / name, place)
        with pytest.raises(StateError, match=rf"checkpoint-3 is damaged: {name} changed since"):
            check_files(folder, accelerator)
        flip(folder / name, place)
    check_files(folder, accelerator)


def test_resume_leaves_a_checkpoint_with_a_changed_marker_aside(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = (folder / MARKER).read_bytes()
    for place in range(0, len(content), 3):
        flip(folder / MARKER, place)
        assert find_checkpoint(folder.parent, "latest", report=True) is None
        with pytest.raises(StateError, match="not a complete checkpoint"):
            find_checkpoint(folder.parent, "checkpoint-3")
        (folder / MARKER).write_bytes(content)
    assert "['checkpoint-3']" in caplog.text


def test_resume_takes_a_checkpoint_from_before_checksums(accelerator: Accelerator, folder: Path) -> None:
    marker = json.loads((folder / MARKER).read_text())
    old = {name: marker[name] for name in ("step", "written", "files")}
    (folder / MARKER).write_text(json.dumps(old))
    assert find_checkpoint(folder.parent, "latest") == folder
    check_files(folder, accelerator)
    content = (folder / "random_states_0.pkl").read_bytes()
    (folder / "random_states_0.pkl").write_bytes(bytes(len(content)))
    with pytest.raises(StateError, match=r"random_states_0\.pkl is damaged"):
        check_files(folder, accelerator)


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("executed",)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_resume_never_executes_a_pickle(
    accelerator: Accelerator, folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "custom_checkpoint_0.pkl"
    if kind == "torch":
        torch.save(_Evil(), path)
    else:
        path.write_bytes(pickle.dumps(_Evil()))
    (folder / MARKER).write_text(json.dumps({"step": 3, "written": 1, "files": {}}))
    with pytest.raises(StateError, match=r"custom_checkpoint_0\.pkl is damaged, or holds more than plain data"):
        check_files(folder, accelerator)
    assert "executed" not in capsys.readouterr().out


def test_resume_reads_large_files_in_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = sorted(path.name for path in folder.iterdir())
    whole = checksums(folder, names)
    monkeypatch.setattr(manifest, "_PART", 100)
    in_parts = checksums(folder, names)
    assert list(whole) == list(in_parts) == names
    for name in names:
        assert len(in_parts[name]) == 8 * -(-(folder / name).stat().st_size // 100)
    flip(folder / "model.safetensors", 150)
    assert checksums(folder, ["model.safetensors"])["model.safetensors"] != in_parts["model.safetensors"]
