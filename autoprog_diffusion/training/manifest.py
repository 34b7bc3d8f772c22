"""Checksums of a checkpoint's files: what is loaded is what was written, or it is not loaded."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprog_diffusion.growth.errors import StateError


if TYPE_CHECKING:
    from accelerate import Accelerator

MARKER = "complete.json"
# A large file is read in parts of so many bytes, by several threads at a time.
_PART = 2**26
_THREADS = 8
# Entries of the marker: of the files, and of the marker's other entries.
_FILES = "checksums"
_OWN = "own_checksum"
# What Accelerate unpickles without a restriction, or ignores where it cannot read it.
_PICKLES = ("custom_checkpoint_*.pkl", "random_states_*.pkl")
# What is read beside that: a checkpoint without checksums must not turn out damaged when half of it is loaded.
_ALL = (*_PICKLES, "*.bin", "*.pt", "*.safetensors")


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Name -> checksum of every named file of a folder."""
    parts: list[tuple[str, int]] = []
    for name in names:
        size = (folder / name).stat().st_size
        # An empty file has one part, too.
        for start in range(0, max(size, 1), _PART):
            parts.append((name, start))

    def checksum(part: tuple[str, int]) -> int:
        name, start = part
        with open(folder / name, "rb") as file:
            file.seek(start)
            return zlib.crc32(file.read(_PART))

    threads = min(_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(checksum, parts))
    sums: dict[str, str] = {}
    for (name, _), value in zip(parts, found):
        before = sums.get(name, "")
        sums[name] = f"{before}{value:08x}"
    return sums


def sealed(marker: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The entries of a marker, `files` among them, with the checksums of the files and its own."""
    entries = dict(marker)
    entries[_FILES] = checksums(folder, marker["files"])
    entries[_OWN] = _own_checksum(entries)
    return entries


def is_intact(marker: Mapping[str, Any]) -> bool:
    """Whether a marker is as it was written; one that is older than checksums has none."""
    if _OWN not in marker:
        return _FILES not in marker
    entries = dict(marker)
    own = entries.pop(_OWN)
    return own == _own_checksum(entries)


def check_files(folder: Path, accelerator: Accelerator) -> None:
    """Refuse a checkpoint whose files are not as they were written; the processes of a node share the work.

    A checkpoint that is older than checksums passes where its files can be read.

    Raises:
        StateError: The message names the files.
    """
    damaged = _differing(folder, accelerator)
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        damaged = sorted(set(gather_object(damaged)))
    if damaged:
        names = ", ".join(damaged[:5])
        raise StateError(
            f"{folder} is damaged: {names} changed since the checkpoint was written. Resume from "
            "another one, with --resume_from_checkpoint and its name."
        )
    _check_readable(folder, _PICKLES if _known(folder) else _ALL)


def _known(folder: Path) -> dict[str, str]:
    """The checksums in the marker; none where it is older."""
    text = (folder / MARKER).read_text(encoding="utf-8")
    return json.loads(text).get(_FILES, {})


def _differing(folder: Path, accelerator: Accelerator) -> list[str]:
    """This process's share of the files that are not as they were written."""
    known = _known(folder)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    first = accelerator.local_process_index
    names = sorted(known)
    mine = names[first::processes]
    found = checksums(folder, mine)
    return [name for name in mine if found[name] != known[name]]


def _check_readable(folder: Path, patterns: Iterable[str]) -> None:
    """Refuse files that cannot be read, and pickles that hold more than tensors and plain data."""
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            try:
                _open(path)
            except Exception as error:  # the unpickler, the archive, safetensors and torch each have their own
                raise StateError(
                    f"{path} is damaged, or holds more than plain data, and is not loaded: {error}"
                ) from error


def _open(path: Path) -> None:
    """Read what a file says of its tensors; their values stay on disk."""
    from accelerate.utils.other import load
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        load(path, map_location="cpu", weights_only=True, mmap=True)
        return
    with safe_open(path, "pt") as file:
        file.keys()


def _own_checksum(entries: Mapping[str, Any]) -> str:
    text = json.dumps(entries, sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"
