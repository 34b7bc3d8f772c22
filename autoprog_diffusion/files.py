"""Writing files so that a crash leaves no half of one, and a full disk is noticed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from autoprog_diffusion.growth.errors import GrowthError


RUN_FILE = "run.json"  # every run leaves one in its output folder
# A run that has ended leaves these beside it; every checkpoint holds those of its step.
GROWTH_FILE = "growth.json"
METRICS_FILE = "metrics.json"
# What was predicted of the stages: by the run in its first steps, or what `autoprog-diffusion plan --json` said.
PLANNED_FILE = "planned.json"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
UNABLE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class DiskError(GrowthError):
    """A file cannot be written."""


def write_text_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old text or the new, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def remove(path: Path) -> None:
    """Delete a file, a folder with all that is in it, or a link, but never what a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(path: Path) -> None:
    """Give every byte of a sparse file a place on the disk, so that writing through a memory map cannot fail.

    A page of a memory map that finds no place kills the process (SIGBUS): no error could be caught.

    Raises:
        OSError: There is not enough space, or the file may not be that large.
    """
    size = path.stat().st_size
    try:
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except (AttributeError, OSError) as error:  # macOS has no such call, and some file systems cannot do it
        if isinstance(error, OSError) and error.errno not in UNABLE:
            raise
        if shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, says that a disk is full; safetensors and datasets say it in words only."""
    words = [os.strerror(number) for number in FULL]
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(word in str(error) for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False
