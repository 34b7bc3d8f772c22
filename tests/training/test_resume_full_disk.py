"""Full disks: one line, and nothing that was complete is lost. Real limits, of a file's size or of a file system."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from autoprog_diffusion.files import is_disk_full, reserve


ROOT = Path(__file__).parents[2]
CACHE = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from autoprog_diffusion.data.cache import build_cache
from autoprog_diffusion.growth import GrowthError
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
if limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
(folder / "kept").write_text("kept")
try:
    build_cache(folder / "cache" / "rows.npy", 4096, lambda rows: torch.ones(len(rows), 1024), fingerprint="a",
                accelerator=Accelerator(cpu=True), batch_size=64, title="rows")
except GrowthError as error:
    assert list((folder / "cache").iterdir()) == [], list((folder / "cache").iterdir())
    sys.exit(f"error: {error}")
"""
TMPFS = "mount -t tmpfs -o size=2m none {folder} && exec {python} -c '{code}' {folder} 0"


def check(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "rows.npy cannot be written" in line
    assert words in line
    assert "Free space" in line
    assert "Traceback" not in done.stderr


def test_a_cache_larger_than_a_file_may_be_is_refused_before_a_row_is_written(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CACHE, str(tmp_path), str(2**20)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, check=False)
    check(done, "File too large")
    assert (tmp_path / "kept").read_text() == "kept"


def test_a_cache_on_a_full_file_system_is_an_error_and_no_sigbus(tmp_path: Path) -> None:
    shell = TMPFS.format(folder=tmp_path, python=sys.executable, code=CACHE.replace("'", '"'))
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True).returncode:
        # The same error by a limit of file size, above, needs no rights.
        pytest.skip("this machine lets no user mount a tmpfs of their own")
    command = [*unshare, "sh", "-c", shell]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, check=False)
    check(done, "No space left on device")


def test_reserved_bytes_are_there_and_keep_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.write(b"head")
        file.truncate(2**20)
    reserve(path)
    assert path.stat().st_blocks * 512 >= 2**20
    assert path.stat().st_size == 2**20
    assert path.read_bytes()[:4] == b"head"


def test_a_full_disk_is_known_by_number_and_by_words(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            (tmp_path / "file").write_bytes(os.urandom(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert is_disk_full(caught.value)
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    wrapped = RuntimeError("cannot write")
    wrapped.__cause__ = caught.value
    assert is_disk_full(wrapped)
    assert not is_disk_full(ValueError("something else"))
