from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from autoprog_diffusion.growth.errors import StateError
from autoprog_diffusion.training.checkpoints import (
    MARKER,
    checkpoint_step,
    find_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from autoprog_diffusion.training.recipe_arguments import Arguments

from .tiny import parse


NewAccelerator = Callable[[Arguments], Accelerator]


@pytest.fixture
def run(tmp_path: Path, new_accelerator: NewAccelerator) -> tuple[Accelerator, torch.nn.Linear, Path]:
    accelerator = new_accelerator(parse("--output_dir", tmp_path))
    model = accelerator.prepare(torch.nn.Linear(3, 2))
    return accelerator, model, tmp_path / "checkpoints"


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_checkpoint_is_loaded_back_with_its_step(run: tuple) -> None:
    accelerator, model, root = run
    save_checkpoint(accelerator, root, 7, None)
    saved = model.weight.detach().clone()
    model.weight.data.zero_()
    path = find_checkpoint(root, "latest")
    assert path == root / "checkpoint-7"
    assert checkpoint_step(path) == 7
    accelerator.load_state(str(path))
    assert torch.equal(model.weight, saved)


def test_the_marker_lists_every_file_with_its_size(run: tuple) -> None:
    accelerator, _, root = run
    save_checkpoint(accelerator, root, 1, None)
    folder = root / "checkpoint-1"
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != MARKER}
    assert len(sizes) >= 2
    marker = json.loads((folder / MARKER).read_text())
    assert (marker["step"], marker["files"]) == (1, sizes)


def test_the_newest_is_the_one_written_last(run: tuple) -> None:
    """Neither the highest step, which a run that went back has abandoned, nor the last name."""
    accelerator, _, root = run
    for step in (9, 10, 100, 20):
        save_checkpoint(accelerator, root, step, None)
    assert newest_checkpoint(root) == root / "checkpoint-20"


@pytest.mark.parametrize("damage", ["marker", "marker text", "missing file", "short file", "long file", "only tmp"])
def test_a_damaged_checkpoint_is_passed_over(run: tuple, damage: str) -> None:
    accelerator, _, root = run
    for step in (1, 2, 3):
        save_checkpoint(accelerator, root, step, None)
    newest = root / "checkpoint-3"
    weights = max((path for path in newest.iterdir() if path.name != MARKER), key=lambda path: path.stat().st_size)
    if damage == "marker":
        (newest / MARKER).unlink()
    elif damage == "marker text":
        (newest / MARKER).write_text('{"step": 3, "fil')
    elif damage == "missing file":
        weights.unlink()
    elif damage == "short file":
        os.truncate(weights, weights.stat().st_size - 1)
    elif damage == "long file":
        os.truncate(weights, weights.stat().st_size + 1)
    else:
        newest.rename(root / "checkpoint-3.tmp")
    assert newest_checkpoint(root) == root / "checkpoint-2"
    with pytest.raises(StateError, match=r"checkpoint-3 is not a complete .*\['checkpoint-1', 'checkpoint-2'\]"):
        find_checkpoint(root, "checkpoint-3")


def test_a_crash_before_the_rename_leaves_no_checkpoint(run: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator, _, root = run
    save_checkpoint(accelerator, root, 1, None)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(accelerator, root, 2, None)
    assert names(root) == ["checkpoint-1", "checkpoint-2.tmp"]
    assert newest_checkpoint(root) == root / "checkpoint-1"
    save_checkpoint(accelerator, root, 2, None)  # over the leftover
    assert names(root) == ["checkpoint-1", "checkpoint-2"]
    assert newest_checkpoint(root) == root / "checkpoint-2"


def test_saving_a_step_again_replaces_it(run: tuple) -> None:
    accelerator, model, root = run
    save_checkpoint(accelerator, root, 1, None)
    model.weight.data.fill_(5.0)
    save_checkpoint(accelerator, root, 1, None)
    model.weight.data.zero_()
    accelerator.load_state(str(root / "checkpoint-1"))
    assert model.weight.min() == 5.0


def test_none_is_found_where_there_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "missing") is None
    assert find_checkpoint(tmp_path, "latest") is None
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "notes").mkdir()
    assert find_checkpoint(tmp_path, "latest") is None


def test_a_checkpoint_is_named_by_its_folder_or_its_path(run: tuple) -> None:
    accelerator, _, root = run
    save_checkpoint(accelerator, root, 4, None)
    elsewhere = root.parent / "elsewhere"
    shutil.copytree(root, elsewhere)
    assert find_checkpoint(root, "checkpoint-4") == root / "checkpoint-4"
    assert find_checkpoint(root, str(elsewhere / "checkpoint-4") + "/") == elsewhere / "checkpoint-4"


def test_a_missing_name_is_refused_with_those_there_are(run: tuple) -> None:
    for wanted in ("checkpoint-5", "newest", "", "checkpoint-4.tmp"):
        accelerator, _, root = run
        save_checkpoint(accelerator, root, 4, None)
        (root / "checkpoint-4.tmp").mkdir()
        with pytest.raises(StateError, match=r"not a complete checkpoint; complete ones in .* are \['checkpoint-4'\]"):
            find_checkpoint(root, wanted)


def test_pruning_keeps_the_newest_and_clears_leftovers(run: tuple) -> None:
    accelerator, _, root = run
    for step in (8, 9, 10, 11):
        save_checkpoint(accelerator, root, step, 2)
        (root / "checkpoint-3.tmp").mkdir(exist_ok=True)
    assert names(root) == ["checkpoint-10", "checkpoint-11", "checkpoint-3.tmp"]
    save_checkpoint(accelerator, root, 12, 2)
    assert names(root) == ["checkpoint-11", "checkpoint-12"]


def test_pruning_does_not_count_incomplete_ones(run: tuple) -> None:
    accelerator, _, root = run
    save_checkpoint(accelerator, root, 1, 2)
    (root / "checkpoint-2").mkdir()
    save_checkpoint(accelerator, root, 3, 2)
    assert {"checkpoint-1", "checkpoint-3"} <= set(names(root))


def test_pruning_never_deletes_the_checkpoint_just_written(run: tuple) -> None:
    """A run that goes back to an older checkpoint writes lower steps than those that lie there."""
    accelerator, _, root = run
    for step in (2, 4, 6):
        save_checkpoint(accelerator, root, step, None)
    save_checkpoint(accelerator, root, 3, 1)
    assert "checkpoint-3" in names(root)
