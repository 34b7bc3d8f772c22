from __future__ import annotations

from pathlib import Path

import pytest

from autoprog_diffusion.files import write_text_atomically
from autoprog_diffusion.training.output import OutputError, check_output_dir


def held(folder: Path) -> Path:
    for name in ("checkpoints", "cache", "class_images"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text("old")
    for name in ("run.json", "growth.json", "model_index.json", "pytorch_lora_weights.safetensors", "mine.txt"):
        (folder / name).write_text("old")
    return folder


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    check_output_dir(tmp_path / "a" / "b", resume=False, overwrite=False)
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_with_foreign_files_is_used_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    check_output_dir(tmp_path, resume=False, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("below", ["", "sub/folder"])
def test_a_path_at_or_below_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written.*Choose another --output_dir"):
        check_output_dir(tmp_path / "file" / below, resume=False, overwrite=True)


ANY_TRACE = ["run.json", "growth.json", "pytorch_lora_weights.safetensors", "checkpoints", "cache", "class_images"]


def test_any_trace_of_a_run_is_refused_by_name(tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in ANY_TRACE:
        tmp_path = tmp_path_factory.mktemp("case")
        (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_text("")
        with pytest.raises(OutputError, match=rf"already holds a run \({name}\).*--resume_from_checkpoint latest"):
            check_output_dir(tmp_path, resume=False, overwrite=False)


def test_resuming_keeps_everything(tmp_path: Path) -> None:
    before = sorted(path for path in held(tmp_path).rglob("*"))
    check_output_dir(tmp_path, resume=True, overwrite=False)
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_resuming_wins_over_overwriting(tmp_path: Path) -> None:
    check_output_dir(held(tmp_path), resume=True, overwrite=True)
    assert (tmp_path / "checkpoints" / "file").exists()


def test_overwriting_deletes_the_run_and_nothing_else(tmp_path: Path) -> None:
    check_output_dir(held(tmp_path), resume=False, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_text_is_replaced_whole_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text_atomically(path, "first, and longer")
    write_text_atomically(path, "zweiter ü")
    assert path.read_text(encoding="utf-8") == "zweiter ü"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_text_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "new \ud800")
    assert path.read_text() == "old"
