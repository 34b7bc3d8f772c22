"""`autoprog-diffusion patch`: what it prints, writes and returns."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from autoprog_diffusion.commands import main as program
from autoprog_diffusion.commands import patch
from autoprog_diffusion.patching.errors import PatchError
from autoprog_diffusion.patching.write import write_bytes_atomically

from .loops import SCRIPT, changed, line_of, patch_text


REFUSED = changed(("            optimizer.zero_grad()\n", ""))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return path


def test_the_diff_is_printed_and_nothing_is_written(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert patch.run([str(script)]) == 0
    printed = capsys.readouterr()
    assert "+            growth.step()  # once per optimizer step" in printed.out
    assert "ema_decay=ema_unet.decay" in printed.err
    assert script.read_text(encoding="utf-8") == SCRIPT


def test_write_changes_the_file_and_keeps_mode_and_link(script: Path, tmp_path: Path) -> None:
    script.chmod(0o755)
    link = tmp_path / "link.py"
    link.symlink_to(script)
    assert patch.run([str(link), "--write", "--no-comments"]) == 0
    assert link.is_symlink()
    assert script.stat().st_mode & 0o777 == 0o755
    assert sorted(os.listdir(tmp_path)) == ["link.py", "train.py"]
    (tmp_path / "again").mkdir()
    assert script.read_text(encoding="utf-8") == patch_text(tmp_path / "again", SCRIPT)


def test_check_says_whether_it_could(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert patch.run([str(script), "--check"]) == 0
    assert "can be patched" in capsys.readouterr().out
    script.write_text(REFUSED, encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        program.main(["patch", str(script), "--check"])
    assert ended.value.code == program.FAILED
    line = line_of(REFUSED, "for step in range")
    assert capsys.readouterr().err.startswith(f"error: {script}:{line}: no optimizer was found")


def test_json_holds_what_was_found_or_why_not(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert patch.run([str(script), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["patched"]
    assert "+    growth = GrowthScheduler(" in found["diff"]
    script.write_text(REFUSED, encoding="utf-8")
    assert patch.run([str(script), "--json"]) == patch.REFUSED
    refused = json.loads(capsys.readouterr().out)
    assert not refused["patched"]
    assert refused["line"] == line_of(REFUSED, "for step in range")


def test_write_and_check_together_are_refused(script: Path) -> None:
    with pytest.raises(PatchError, match="give one of them"):
        patch.run([str(script), "--check", "--write"])


def test_without_libcst_the_extra_is_named(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PatchError, match=r"autoprog-diffusion\[patch\]"):
        patch.run([str(script)])


def test_a_file_that_changed_meanwhile_is_left_alone(script: Path) -> None:
    with pytest.raises(PatchError, match="has changed since"):
        write_bytes_atomically(script, b"something else", b"new")
    assert script.read_text(encoding="utf-8") == SCRIPT


def test_a_failed_write_leaves_the_old_file(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(PatchError, match="No space left"):
        write_bytes_atomically(script, SCRIPT.encode(), b"new")
    assert os.listdir(script.parent) == ["train.py"]
    assert script.read_text(encoding="utf-8") == SCRIPT
