"""Writes a patched script, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from .errors import PatchError


def write_bytes_atomically(path: Path, old: bytes, new: bytes) -> None:
    """Replace the content of a script; a crash leaves the old or the new one.

    Its mode is kept, and a symbolic link goes on pointing to the file.

    Args:
        path: The script.
        old: Content that the change was made for.
        new: Content to write.

    Raises:
        PatchError: It has changed since it was read, or cannot be written; it is then as it was.
    """
    real = path.resolve()
    if not os.access(real, os.W_OK):
        raise PatchError(path, None, "it is read-only: nothing was written.")
    try:
        if real.read_bytes() != old:
            raise PatchError(path, None, "it has changed since it was read: run the command again.")
        descriptor, name = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.")
        temporary = Path(name)
        try:
            with open(descriptor, "wb") as file:
                file.write(new)
                file.flush()
                os.fsync(file.fileno())
            shutil.copymode(real, temporary)
            os.replace(temporary, real)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise PatchError(path, None, f"it cannot be written ({error.strerror}), and is as it was.") from error
